//! A loaded model.

use std::{ops::Range, path::Path, sync::Arc};

use gdn::{Cpu, Cuda, DType, DecodePath, Place, PrefillForm};

use crate::{
    Checkpoint, Config, Error, Result, Sequence,
    batch::{Batch, Logits},
    cpu::OnCpu,
    cuda::{OnGpu, bucket},
    device::{Device, Shape},
    forward::{Forward, Observe, Operator, Runs},
    memory::{Memory, PAGE, Room},
    ops::sample::Choice,
    sequence::GdnState,
};

/// How a model runs.
#[derive(Clone, Debug, PartialEq)]
#[non_exhaustive]
pub struct Options {
    /// What runs the model: the CPU, or a GPU.
    pub device: Place,
    /// The dtype of activations, and of keys, values and conv states. A GPU has bf16,
    /// the default there, and f32, which is for comparisons; the CPU has f32.
    pub activations: Option<DType>,
    /// The threads to compute with on the CPU; as many as the machine runs at once
    /// if `None`.
    pub threads: Option<usize>,
    /// How the Gated DeltaNet layers take several tokens at once. With
    /// [`PrefillForm::Recurrent`], the default, logits have the same bits however
    /// the tokens are split into calls.
    pub prefill: PrefillForm,
    /// How the Gated DeltaNet layers take one token of each sequence.
    pub decode: DecodePath,
    /// The sequences that there is memory for at once.
    pub sequences: usize,
    /// The tokens, of all sequences together, that there is memory for; rounded up
    /// to pages of 64. `None`: as many as one sequence can have, 65 536 at the most.
    pub tokens: Option<usize>,
    /// On a GPU, as many tokens as fit when what is held of its memory, by this process or
    /// others, is this fraction of it, above 0 and at most 1; `tokens` of them at the most, or
    /// all that the sequences can have. The rest is for what comes later: logits, graphs,
    /// kernels. `None`, and on the CPU: as many as `tokens` says.
    pub memory_fraction: Option<f64>,
    /// The tokens that a forward pass takes at once; longer prompts are split.
    pub batch_tokens: usize,
}

impl Default for Options {
    fn default() -> Self {
        Self {
            device: Place::Host,
            activations: None,
            threads: None,
            prefill: PrefillForm::Recurrent,
            decode: DecodePath::Fused,
            sequences: 8,
            tokens: None,
            memory_fraction: None,
            batch_tokens: 2048,
        }
    }
}

impl Options {
    /// These options on another device.
    pub fn device(self, device: Place) -> Self {
        Self { device, ..self }
    }

    /// These options with another dtype of activations.
    pub fn activations(self, activations: DType) -> Self {
        Self { activations: Some(activations), ..self }
    }

    /// These options with this many threads.
    pub fn threads(self, threads: usize) -> Self {
        Self { threads: Some(threads), ..self }
    }

    /// These options with this form of prefill.
    pub fn prefill(self, prefill: PrefillForm) -> Self {
        Self { prefill, ..self }
    }

    /// These options with this path of decode.
    pub fn decode(self, decode: DecodePath) -> Self {
        Self { decode, ..self }
    }

    /// These options with memory for so many sequences.
    pub fn sequences(self, sequences: usize) -> Self {
        Self { sequences, ..self }
    }

    /// These options with memory for so many tokens.
    pub fn tokens(self, tokens: usize) -> Self {
        Self { tokens: Some(tokens), ..self }
    }

    /// These options with as many tokens as fit into this fraction of a GPU's memory.
    pub fn memory_fraction(self, fraction: f64) -> Self {
        Self { memory_fraction: Some(fraction), ..self }
    }
}

impl Options {
    /// The pages of keys and values of a model with so many positions, where there is this room
    /// beside weights and slots.
    fn pages(&self, positions: usize, room: Option<Room>) -> Result<usize> {
        let (Some(fraction), Some(room)) = (self.memory_fraction, room) else {
            return Ok(self.tokens.unwrap_or_else(|| positions.min(1 << 16)).div_ceil(PAGE));
        };
        let most = self.tokens.unwrap_or_else(|| self.sequences.saturating_mul(positions));
        match room.pages(fraction).min(most.div_ceil(PAGE)) {
            0 => Err(Error::NoRoom {
                used: room.used(),
                total: room.total,
                fraction,
                slots: self.sequences,
                page: room.page,
            }),
            pages => Ok(pages),
        }
    }

    /// The dtype of activations, one of those that a device has; the first by default.
    pub(crate) fn dtype(&self, known: &[DType]) -> Result<DType> {
        match self.activations {
            None => Ok(known[0]),
            Some(dtype) if known.contains(&dtype) => Ok(dtype),
            Some(dtype) => Err(Error::Option {
                option: "activations",
                expected: known.iter().map(DType::to_string).collect::<Vec<_>>().join(" or "),
                got: dtype.to_string(),
            }),
        }
    }
}

/// A model, ready to run.
#[derive(Debug)]
pub struct Model {
    config: Config,
    runs: Box<dyn Runs>,
    memory: Arc<Memory>,
    batch: Batch,
    /// The rows of logits that the last pass left.
    rows: usize,
    batch_tokens: usize,
    place: Place,
}

/// Tokens of one sequence for a forward pass.
#[derive(Debug)]
pub struct Turn<'a> {
    /// What was before them.
    pub sequence: &'a mut Sequence,
    /// At least one.
    pub tokens: &'a [u32],
    /// Whose logits are asked for.
    pub logits: Logits,
}

impl Model {
    /// The tokens of a page of keys and values. A sequence's memory grows by pages.
    pub const PAGE_TOKENS: usize = PAGE;

    /// Loads `config.json` and the weights beside it.
    ///
    /// # Errors
    /// As [`Config::read`] and [`Checkpoint`], or an operator's if there are no
    /// threads to be had.
    pub fn load(folder: impl AsRef<Path>) -> Result<Self> {
        Self::load_with(folder, &Options::default())
    }

    /// As [`load`](Self::load), with options.
    ///
    /// # Errors
    /// As [`load`](Self::load).
    pub fn load_with(folder: impl AsRef<Path>, options: &Options) -> Result<Self> {
        let folder = folder.as_ref();
        let config = Config::read(&folder.join("config.json"))?;
        let mut checkpoint = Checkpoint::open(folder)?;
        let model = Self::new(config, &mut checkpoint, options, &mut |_| {})?;
        checkpoint.finish()?;
        Ok(model)
    }

    /// A model of these weights. `progress` hears the number of layers that are
    /// loaded.
    ///
    /// # Errors
    /// As [`load`](Self::load).
    pub fn new(
        config: Config,
        checkpoint: &mut Checkpoint,
        options: &Options,
        progress: &mut dyn FnMut(usize),
    ) -> Result<Self> {
        match options.device {
            Place::Cuda(gpu) => {
                Self::on_cuda(Cuda::new(gpu)?, config, checkpoint, options, progress)
            }
            Place::Host => {
                let cpu = options.threads.map_or_else(Cpu::new, Cpu::with_threads)?;
                let device = OnCpu::new(cpu, Shape::new(&config), options)?;
                Self::on(device, Place::Host, config, checkpoint, options, progress)
            }
        }
    }

    /// On a GPU that is open, or a test's.
    #[doc(hidden)]
    pub fn on_cuda(
        cuda: Cuda,
        config: Config,
        checkpoint: &mut Checkpoint,
        options: &Options,
        progress: &mut dyn FnMut(usize),
    ) -> Result<Self> {
        let place = Place::Cuda(cuda.runtime().ordinal());
        let device = OnGpu::new(cuda, &config, options)?;
        Self::on(device, place, config, checkpoint, options, progress)
    }

    fn on<D: Device + 'static>(
        device: D,
        place: Place,
        config: Config,
        checkpoint: &mut Checkpoint,
        options: &Options,
        progress: &mut dyn FnMut(usize),
    ) -> Result<Self> {
        let slots = options.sequences;
        let mut forward = Forward::load(device, &config, checkpoint, slots, progress)?;
        let pages = options.pages(config.max_positions, forward.room()?)?;
        forward.make_pages(pages)?;
        Ok(Self {
            config,
            runs: Box::new(forward),
            memory: Memory::new(slots, pages),
            batch: Batch::default(),
            rows: 0,
            batch_tokens: options.batch_tokens.max(1),
            place,
        })
    }

    /// Compiles and loads what passes of any size need, and records the graphs of decode, so
    /// that no request waits for it. Nothing to do on the CPU. Takes some seconds, more where
    /// kernels are not cached; `progress` hears of each pass, and of how many there are.
    ///
    /// # Errors
    /// As [`step`](Self::step); [`Error::NoSlot`] or [`Error::NoPages`] if sequences are held.
    pub fn warm_up(&mut self, progress: &mut dyn FnMut(usize, usize)) -> Result<()> {
        if self.place == Place::Host {
            return Ok(());
        }
        let (sequences, tokens) = self.free();
        let longest = self.batch_tokens.min(tokens).min(self.config.max_positions);
        let prompts: Vec<usize> =
            (1..).map(|n| 1 << n).take_while(|&len| len < longest).chain([longest]).collect();
        // A sequence has a page at least.
        let most = sequences.min(tokens / PAGE);
        let mut batches: Vec<usize> = (1..=most).map(|rows| bucket(rows).min(most)).collect();
        batches.dedup();
        // The tokens of each sequence: kernels differ by the rows of a pass, and by its prompts.
        let together = [2, 3, 4, 8].into_iter().filter(|&n| n <= most && 2 * n <= longest);
        let mut passes: Vec<_> = prompts.into_iter().map(|len| vec![len]).collect();
        passes.extend(together.map(|n| vec![2; n]));
        // Beside an answer, so that there is room for that of the largest piece.
        let piece = longest.saturating_sub(1).min(tokens.saturating_sub(PAGE));
        if most > 1 && piece > 1 {
            passes.push(vec![1, piece]);
        }
        // A pass of single tokens is run first, and recorded the second time.
        passes.extend(batches.into_iter().flat_map(|n| [vec![1; n], vec![1; n]]));
        let tokens = vec![0; longest];
        let mut running = Vec::new();
        for (done, lengths) in passes.iter().enumerate() {
            progress(done, passes.len());
            if lengths.iter().any(|&len| len > 1) {
                running.clear();
            }
            while running.len() < lengths.len() {
                running.push(self.sequence()?);
            }
            let turns = running.iter_mut().zip(lengths);
            let mut turns: Vec<_> = turns
                .map(|(sequence, &len)| Turn {
                    sequence,
                    tokens: &tokens[..len],
                    logits: Logits::Last,
                })
                .collect();
            self.step_tokens(&mut turns, &[])?;
        }
        progress(passes.len(), passes.len());
        Ok(())
    }

    /// What it runs on.
    pub fn place(&self) -> Place {
        self.place
    }

    /// The model's shape and options.
    pub fn config(&self) -> &Config {
        &self.config
    }

    /// A sequence without tokens.
    ///
    /// # Errors
    /// [`Error::NoSlot`] if there are as many as there is memory for.
    pub fn sequence(&mut self) -> Result<Sequence> {
        let runs = &mut self.runs;
        self.memory.sequence(|slot| runs.clear(slot))
    }

    /// A second sequence with the tokens of another, which goes its own way from here. They
    /// share the memory of what they have in common, but for the state. To move a sequence
    /// to another slot, fork and drop it.
    ///
    /// # Errors
    /// [`Error::NoSlot`], [`Error::NoPages`] if the last page is to be copied and there is
    /// none, [`Error::ForeignSequence`].
    pub fn fork(&mut self, sequence: &Sequence) -> Result<Sequence> {
        self.check_owner(sequence)?;
        let runs = &mut self.runs;
        self.memory.fork(sequence, |slots, pages| runs.copy(slots, pages))
    }

    /// The sequences and the tokens, in whole pages, that there is still memory for.
    pub fn free(&self) -> (usize, usize) {
        let (slots, pages) = self.memory.left();
        (slots, pages * PAGE)
    }

    /// Runs tokens through the model, behind those that the sequence has seen,
    /// and returns the logits for what comes after the last, `[vocab]`.
    ///
    /// # Errors
    /// As [`step`](Self::step), but that any number of tokens is taken.
    pub fn forward(&mut self, sequence: &mut Sequence, tokens: &[u32]) -> Result<Vec<f32>> {
        self.all_logits(sequence, tokens, [Logits::Nothing, Logits::Last], None)
    }

    /// As [`forward`](Self::forward), with the logits of every token,
    /// `[T, vocab]`.
    ///
    /// # Errors
    /// As [`forward`](Self::forward).
    pub fn forward_all(&mut self, sequence: &mut Sequence, tokens: &[u32]) -> Result<Vec<f32>> {
        self.all_logits(sequence, tokens, [Logits::All; 2], None)
    }

    /// As [`forward_all`](Self::forward_all), and shows `observe` the hidden
    /// states `[T, hidden]` on their way: with index i what enters layer i, and
    /// with the number of layers as index what leaves the final norm.
    ///
    /// # Errors
    /// As [`forward`](Self::forward).
    pub fn forward_observed(
        &mut self,
        sequence: &mut Sequence,
        tokens: &[u32],
        observe: &mut (dyn FnMut(usize, &[f32]) + Send),
    ) -> Result<Vec<f32>> {
        self.all_logits(sequence, tokens, [Logits::All; 2], Some(observe))
    }

    /// Runs the tokens of several sequences through the model at once, and returns
    /// the logits that are asked for, `[R, vocab]`, in the order of the turns.
    ///
    /// A sequence's logits are those that it would have alone.
    ///
    /// # Errors
    /// [`Error::NoTokens`], [`Error::BatchTokens`], [`Error::Token`],
    /// [`Error::TooLong`], [`Error::NoPages`] or [`Error::ForeignSequence`]; the
    /// sequences are as before then.
    pub fn step(&mut self, turns: &mut [Turn<'_>]) -> Result<Vec<f32>> {
        let rows = self.run(turns, &[], None)?;
        self.logits(0..rows)
    }

    /// As [`step`](Self::step), but of each row of logits the device chooses a token,
    /// `[R]`: by the choice of the same index, and greedily where there is none.
    ///
    /// # Errors
    /// As [`step`](Self::step).
    pub fn step_tokens(&mut self, turns: &mut [Turn<'_>], choices: &[Choice]) -> Result<Vec<u32>> {
        let mut tokens = Vec::new();
        self.run(turns, choices, None)?;
        self.runs.read_tokens(&mut tokens)?;
        Ok(tokens)
    }

    /// Some rows of the logits that the last call asked for, `[rows, vocab]`.
    ///
    /// # Errors
    /// An operator's, if the device fails.
    ///
    /// # Panics
    /// If there are fewer rows.
    pub fn logits(&mut self, rows: Range<usize>) -> Result<Vec<f32>> {
        assert!(rows.end <= self.rows, "rows {rows:?} of {}", self.rows);
        let mut logits = Vec::new();
        self.runs.read_logits(rows, &mut logits)?;
        Ok(logits)
    }

    /// Leaves out all operators but those of one kind from now on, until called with
    /// `None`: to see how long they take. What comes out means nothing.
    pub fn only(&mut self, operator: Option<Operator>) {
        self.runs.only(operator);
    }

    /// The state of a Gated DeltaNet layer, counted among all layers.
    ///
    /// # Errors
    /// [`Error::Layer`] if there is no such layer, or it is a full-attention one;
    /// [`Error::ForeignSequence`].
    pub fn gdn_state(&self, sequence: &Sequence, layer: usize) -> Result<GdnState> {
        self.check_owner(sequence)?;
        let Some(pool) = self.runs.pool(layer) else {
            return Err(Error::Layer { layers: self.config.layers.len(), got: layer });
        };
        let slot = sequence.slot();
        Ok(GdnState { recurrent: pool.recurrent(slot)?, conv: pool.conv(slot)? })
    }

    /// Runs tokens in pieces that a forward pass can take; `read` comes behind each.
    fn pieces(
        &mut self,
        sequence: &mut Sequence,
        tokens: &[u32],
        [before, last]: [Logits; 2],
        mut observe: Option<Observe<'_>>,
        mut read: impl FnMut(&mut dyn Runs, usize) -> Result<()>,
    ) -> Result<()> {
        // All of them before any.
        self.check(sequence, tokens)?;
        sequence.reserve(tokens.len())?;
        let mut rest = tokens;
        while !rest.is_empty() {
            let (piece, behind) = rest.split_at(rest.len().min(self.batch_tokens));
            let logits = if behind.is_empty() { last } else { before };
            let observe = observe.as_mut().map(|observe| &mut **observe as Observe<'_>);
            let rows = self.run(&mut [Turn { sequence, tokens: piece, logits }], &[], observe)?;
            read(&mut *self.runs, rows)?;
            rest = behind;
        }
        Ok(())
    }

    fn all_logits(
        &mut self,
        sequence: &mut Sequence,
        tokens: &[u32],
        wanted: [Logits; 2],
        observe: Option<Observe<'_>>,
    ) -> Result<Vec<f32>> {
        let (mut all, mut logits) = (Vec::new(), Vec::new());
        self.pieces(sequence, tokens, wanted, observe, |runs, rows| {
            runs.read_logits(0..rows, &mut logits)?;
            all.append(&mut logits);
            Ok(())
        })?;
        Ok(all)
    }

    /// The most likely token behind `tokens`.
    pub(crate) fn greedy(&mut self, sequence: &mut Sequence, tokens: &[u32]) -> Result<u32> {
        let mut last = Vec::new();
        let wanted = [Logits::Nothing, Logits::Last];
        self.pieces(sequence, tokens, wanted, None, |runs, _| runs.read_tokens(&mut last))?;
        Ok(last[0])
    }

    /// R, the rows of logits that were asked for.
    fn run(
        &mut self,
        turns: &mut [Turn<'_>],
        choices: &[Choice],
        observe: Option<Observe<'_>>,
    ) -> Result<usize> {
        let rows = turns.iter().map(|turn| turn.tokens.len()).sum();
        if rows > self.batch_tokens {
            return Err(Error::BatchTokens { limit: self.batch_tokens, got: rows });
        }
        for turn in &*turns {
            self.check(turn.sequence, turn.tokens)?;
        }
        for turn in &mut *turns {
            turn.sequence.reserve(turn.tokens.len())?;
        }
        let views: Vec<_> =
            turns.iter().map(|turn| (&*turn.sequence, turn.tokens, turn.logits)).collect();
        self.batch.fill(&views, choices);
        let rows = self.batch.logits.len();
        // A pass that fails leaves none.
        self.rows = 0;
        self.runs.run(&mut self.batch, observe)?;
        self.rows = rows;
        for turn in turns {
            turn.sequence.extend(turn.tokens.len());
        }
        Ok(rows)
    }

    fn check_owner(&self, sequence: &Sequence) -> Result<()> {
        if self.memory.owns(sequence) { Ok(()) } else { Err(Error::ForeignSequence) }
    }

    fn check(&self, sequence: &Sequence, tokens: &[u32]) -> Result<()> {
        self.check_owner(sequence)?;
        let (vocab, limit) = (self.config.vocab_size, self.config.max_positions);
        if tokens.is_empty() {
            return Err(Error::NoTokens);
        }
        if let Some(index) = tokens.iter().position(|&token| token as usize >= vocab) {
            return Err(Error::Token { index, vocab, got: tokens[index] });
        }
        let got = sequence.len().saturating_add(tokens.len());
        if got > limit {
            return Err(Error::TooLong { limit, got });
        }
        Ok(())
    }
}

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn pages_by_number_or_by_what_fits() {
        let pages = |options: &Options, room| options.pages(1 << 18, room).unwrap();
        let room = Some(Room { free: 700_000, total: 1_000_000, page: 1000 });
        let plain = Options::default().sequences(2);
        assert_eq!((pages(&plain, None), pages(&plain, room)), (1024, 1024));
        assert_eq!(pages(&plain.clone().tokens(65), room), 2);
        let fraction = plain.memory_fraction(0.8);
        // 500 000 of 800 000 are left.
        assert_eq!((pages(&fraction, room), pages(&fraction, None)), (500, 1024));
        assert_eq!(pages(&fraction.clone().tokens(65), room), 2);
        assert_eq!(pages(&fraction.clone().tokens(1 << 20), room), 500);
        let large = Some(Room { free: 1 << 40, total: 1 << 40, page: 1 });
        assert_eq!(pages(&fraction, large), 2 << 12, "all that two sequences can have");

        let full = Some(Room { free: 200_999, total: 1_000_000, page: 1000 });
        let error = fraction.pages(1 << 18, full).unwrap_err().to_string();
        assert!(error.contains("0.8 of 1000000 bytes, got 799001 in use"), "{error}");
        assert!(error.contains("2 state slots"), "{error}");
    }
}
