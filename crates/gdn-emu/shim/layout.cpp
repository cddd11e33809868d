// The sizes of the parameter structs, in the order of params.cuh.
#include <cstddef>
#include "params.cuh"
extern "C" const size_t gdn_emu_sizes[] = {
    sizeof(GdnSlots),    sizeof(GdnRing),     sizeof(ConvParams),  sizeof(GatesParams),
    sizeof(SplitCopyParams), sizeof(SplitParams), sizeof(PackedParams), sizeof(FusedParams),
    sizeof(NormParams),  sizeof(PrefillParams), sizeof(PrefillConvParams),
    sizeof(GdnChunks),   sizeof(ChunkConvParams), sizeof(ChunkParams),
};
