//! What only a GPU has: pools, slots and tensors of its own, and graphs. On the
//! emulated GPU (`GDN_TEST_BACKEND=emu`) all but the graphs; on the CPU nothing.
#![allow(unsafe_code, clippy::print_stdout)] // Graphs keep addresses; a line for a skipped test.

mod common;

use common::{Args, DTypes, Op, World, cuda, on_gpu};
use gdn::{
    Backend, Cuda, DType, DecodePath, ErrorKind, LayerSpec, LayerStep, Place, PoolOptions, Rows,
    StatePool,
};
use gdn_check::{DeviceTensor, Inputs, Tensor};
use gdn_cuda::{Arena, DevicePtr, DeviceSlice, Stream};

const BF16: DTypes = DTypes { activations: DType::BF16, recurrent: DType::F32 };

fn spec() -> LayerSpec {
    LayerSpec::new(2, 4, 128, 128).unwrap()
}

fn options(dtypes: DTypes, slots: usize) -> PoolOptions {
    let DTypes { activations, recurrent } = dtypes;
    PoolOptions { recurrent, conv: activations, ..PoolOptions::new(slots) }
}

/// Whether tests run on a backend with memory of its own; says so if not.
fn skipped(needs: &str) -> bool {
    let skip = !on_gpu(needs == "a GPU");
    if skip {
        println!("skipped: needs {needs}; see GDN_TEST_BACKEND");
    }
    skip
}

/// Four sequences through three tokens, with copies and snapshots between them.
fn story(cuda: &mut Cuda, mut pool: StatePool, world: &World) -> Vec<Vec<f32>> {
    let mut slots: Vec<i32> = (0..4).map(|_| pool.allocate().unwrap()).collect();
    for (sequence, &slot) in slots.iter().enumerate() {
        world.set(&mut pool, slot, sequence);
    }
    let mut outs = Vec::new();
    for token in 0..3 {
        let tokens: Vec<_> = world.sequences.iter().map(|s| Some(&s.tokens[token])).collect();
        let inputs = world.inputs(&tokens, 0);
        let mut out = Tensor::poisoned(world.dtypes.activations, 4, world.spec.value_len());
        let (layer, state) = (&world.random.layer, pool.state_mut());
        let args = Args::new(layer, &inputs, &[], (&slots).into(), state, out.view_mut());
        args.call(cuda, Op::Layer(DecodePath::ALL[token])).unwrap();
        outs.push(out.slice().to_f32());
        match token {
            0 => pool.copy(slots[0], slots[1]).unwrap(),
            _ => {
                // Another slot takes over where this one is.
                let snapshot = pool.snapshot(slots[2]).unwrap();
                pool.free(slots[2]).unwrap();
                let other = (pool.allocate().unwrap(), pool.allocate().unwrap()).1;
                pool.restore(other, &snapshot).unwrap();
                slots[2] = other;
            }
        }
    }
    for slot in slots {
        outs.extend([pool.recurrent(slot).unwrap(), pool.conv(slot).unwrap()]);
    }
    outs
}

#[test]
fn a_pool_on_the_gpu_goes_the_way_of_one_on_the_host() {
    if skipped("a GPU, emulated or not") {
        return;
    }
    for dtypes in DTypes::all() {
        let world = World::new(&spec(), dtypes, &[3; 4], 17);
        let mut cuda = cuda();
        let host = StatePool::new(&world.spec, &options(dtypes, 8)).unwrap();
        let device = cuda.pool(&world.spec, &options(dtypes, 8)).unwrap();
        assert_eq!([host.place(), device.place()], [Place::Host, Place::Cuda(0)]);
        assert!(device.buffers().is_none());
        let expected = story(&mut cuda, host, &world);
        assert_eq!(story(&mut cuda, device, &world), expected, "{dtypes:?}");
    }
}

#[test]
fn a_fresh_slot_is_zero_whatever_was_there() {
    if skipped("a GPU, emulated or not") {
        return;
    }
    let spec = spec();
    let mut pool = cuda().pool(&spec, &options(BF16, 2)).unwrap();
    let zeros = [vec![0.0; spec.state_len()], vec![0.0; 3 * spec.channels()]];
    for _ in 0..3 {
        let slot = pool.allocate().unwrap();
        assert_eq!([pool.recurrent(slot).unwrap(), pool.conv(slot).unwrap()], zeros);
        pool.set(slot, &vec![1.5; spec.state_len()], &vec![2.5; 3 * spec.channels()]).unwrap();
        pool.free(slot).unwrap();
    }
}

#[test]
fn memory_that_the_backend_cannot_reach_is_named() {
    let nowhere = DevicePtr::<f32>::from_address(256);
    // SAFETY: nobody follows the address: the call is refused.
    let elements = unsafe { DeviceSlice::from_raw_parts(nowhere, 6, 3) };
    let spec = LayerSpec::new(1, 1, 2, 2).unwrap();
    let world = World::new(&spec, DTypes::F32, &[1], 1);
    let inputs = world.inputs(&[Some(&world.sequences[0].tokens[0])], 0);
    let mut pool = StatePool::new(&spec, &options(DTypes::F32, 1)).unwrap();
    let mut out = Tensor::poisoned(DType::F32, 1, 2);
    let (layer, state) = (&world.random.layer, pool.state_mut());
    let mut args = Args::new(layer, &inputs, &[1], (&[0i32]).into(), state, out.view_mut());
    args.mixed_qkv = Rows::new(elements, 1, 6).unwrap();
    let mut backend = common::backend();
    let error = args.call(&mut *backend, Op::Layer(DecodePath::Fused)).unwrap_err();
    let expected = if backend.name() == "cpu" { Place::Host } else { Place::Cuda(0) };
    let kind = ErrorKind::Place { argument: "mixed_qkv", expected, got: Place::Cuda(3) };
    assert_eq!(*error.kind(), kind);
    assert!(error.to_string().ends_with("got memory of cuda:3"), "{error}");
}

/// The tensors of one step on the GPU.
struct Step {
    mixed_qkv: DeviceTensor,
    a: DeviceTensor,
    b: DeviceTensor,
    z: DeviceTensor,
    out: DeviceTensor,
    slots: gdn_cuda::DeviceBuffer<i32>,
}

impl Step {
    fn new(stream: &Stream, spec: &LayerSpec, inputs: &Inputs, rows: usize) -> Self {
        let arena = Arena::new(stream.device(), 64 << 20).unwrap();
        let on_device = |tensor: &Tensor| tensor.to_device(&arena, stream).unwrap();
        Self {
            mixed_qkv: on_device(&inputs.mixed_qkv),
            a: on_device(&inputs.a),
            b: on_device(&inputs.b),
            z: on_device(&inputs.z),
            out: on_device(&Tensor::poisoned(DType::BF16, rows, spec.value_len())),
            slots: arena.alloc(rows).unwrap(),
        }
    }
}

#[test]
fn a_graph_follows_the_slots_as_they_change() {
    if skipped("a GPU") {
        return;
    }
    let (rows, steps) = (4, [[0, 1, 2, 3], [3, -1, 0, 5], [-1, -1, 4, 0], [9, 5, 1, -7]]);
    let world = World::new(&spec(), BF16, &vec![1; rows], 23);
    let layer = &world.random.layer;
    let tokens: Vec<_> = world.sequences.iter().map(|s| Some(&s.tokens[0])).collect();
    let inputs = world.inputs(&tokens, 0);
    for path in DecodePath::ALL {
        let mut cuda = Cuda::new(0).unwrap();
        let stream = cuda.stream().clone();
        let pools = [(); 2].map(|()| {
            let mut pool = cuda.pool(&world.spec, &options(BF16, 10)).unwrap();
            (0..10).for_each(|slot| world.set(&mut pool, slot, slot as usize % rows));
            pool
        });
        let [mut replayed, mut stepped] = pools;
        cuda.prepare(layer, DType::BF16, DType::F32, rows).unwrap();
        let mut step = Step::new(&stream, &world.spec, &inputs, rows);
        // SAFETY: all of it lives until the last replay.
        let graph = unsafe {
            stream.capture(|_| {
                cuda.layer_step(
                    path,
                    LayerStep {
                        layer,
                        mixed_qkv: step.mixed_qkv.view(),
                        a: step.a.view(),
                        b: step.b.view(),
                        z: step.z.view(),
                        slots: step.slots.view().into(),
                        state: replayed.state_mut(),
                        out: step.out.view_mut(),
                    },
                )
                .map_err(|error| panic!("{error}"))
            })
        };
        let graph: gdn_cuda::Graph =
            graph.unwrap_or_else(|error: gdn_cuda::Error| panic!("{error}"));
        let graph = graph.instantiate(&stream).unwrap();
        for (step_index, slots) in steps.iter().enumerate() {
            stream.upload(step.slots.view_mut(), slots).unwrap();
            graph.launch(&stream).unwrap();
            cuda.synchronize().unwrap();
            let out = step.out.to_host(&stream).unwrap();

            let mut expected = Tensor::poisoned(DType::BF16, rows, world.spec.value_len());
            let state = stepped.state_mut();
            let args = Args::new(layer, &inputs, &[], slots.into(), state, expected.view_mut());
            args.call(&mut cuda, Op::Layer(path)).unwrap();
            assert_eq!(out.bits(), expected.bits(), "{path}, step {step_index}");
            for slot in 0..10 {
                let state = |pool: &StatePool| [pool.recurrent(slot), pool.conv(slot)];
                assert_eq!(state(&replayed), state(&stepped), "{path}, slot {slot}");
            }
        }
    }
}

/// A pool of 9 GB: its last slot starts past 2^31 elements.
#[test]
fn slots_past_2_to_31_elements_on_the_gpu() {
    if skipped("a GPU") {
        return;
    }
    let spec = spec();
    let world = World::new(&spec, BF16, &[1, 1], 29);
    let tokens: Vec<_> = world.sequences.iter().map(|s| Some(&s.tokens[0])).collect();
    let inputs = world.inputs(&tokens, 0);
    let mut cuda = Cuda::new(0).unwrap();
    for path in DecodePath::ALL {
        let mut run = |recurrent_pitch| {
            let options = PoolOptions { recurrent_pitch, ..options(BF16, 5) };
            let mut pool = cuda.pool(&spec, &options).unwrap();
            world.set(&mut pool, 0, 0);
            world.set(&mut pool, 4, 1);
            let mut out = Tensor::poisoned(DType::BF16, 2, spec.value_len());
            let (layer, state) = (&world.random.layer, pool.state_mut());
            let args = Args::new(layer, &inputs, &[], (&[0, 4]).into(), state, out.view_mut());
            args.call(&mut cuda, Op::Layer(path)).unwrap();
            (out.bits(), pool.recurrent(0), pool.recurrent(4), pool.conv(4))
        };
        assert_eq!(run(Some((1 << 29) + 64)), run(None), "{path}");
    }
}
