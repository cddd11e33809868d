//! Sequences come, fork, rest and go: their states follow them bit for bit.

mod common;

use common::{Args, DTypes, Op, Token, World, backend};
use gdn::{DType, DecodePath::Fused, LayerSpec, PoolOptions, StatePool};
use gdn_check::Tensor;

fn spec() -> LayerSpec {
    LayerSpec::new(2, 4, 17, 9).unwrap()
}

fn pool(dtypes: DTypes, slots: usize) -> StatePool {
    pitched_pool(dtypes, slots, 0)
}

fn pitched_pool(dtypes: DTypes, slots: usize, gap: usize) -> StatePool {
    let options = PoolOptions {
        slots,
        recurrent: dtypes.recurrent,
        conv: dtypes.activations,
        recurrent_pitch: Some(spec().state_len() + gap),
        conv_pitch: Some(spec().conv_len() + gap),
    };
    StatePool::new(&spec(), &options).unwrap()
}

/// Decodes tokens on one slot.
fn decode(world: &World, pool: &mut StatePool, slot: i32, tokens: &[Token]) -> Vec<Vec<f32>> {
    let step = |token| {
        let inputs = world.inputs(&[Some(token)], 0);
        let mut out = Tensor::poisoned(world.dtypes.activations, 1, spec().value_len());
        let (layer, slots) = (&world.random.layer, &[slot]);
        let args = Args::new(layer, &inputs, &[1], slots.into(), pool.state_mut(), out.view_mut());
        args.call(&mut *backend(), Op::Layer(Fused)).unwrap();
        out.slice().to_f32()
    };
    tokens.iter().map(step).collect()
}

fn state(pool: &StatePool, slot: i32) -> [Vec<f32>; 2] {
    [pool.recurrent(slot).unwrap(), pool.conv(slot).unwrap()]
}

/// Calls `check` with a world of one sequence of nine tokens, and a count of
/// tokens to have decoded: the ring stands at each of its entries once.
fn at_every_phase(check: impl Fn(&World, &[Token], usize)) {
    for dtypes in DTypes::all() {
        let world = World::new(&spec(), dtypes, &[9], 29);
        for decoded in 0..=4 {
            check(&world, &world.sequences[0].tokens, decoded);
        }
    }
}

#[test]
fn slots_are_handed_out_once_and_zero() {
    let world = World::new(&spec(), DTypes::F32, &[3], 31);
    let mut pool = pool(DTypes::F32, 3);
    let slots: Vec<i32> = (0..3).map(|_| pool.allocate().unwrap()).collect();
    assert_eq!((slots.as_slice(), pool.free_slots()), (&[0, 1, 2][..], 0));
    decode(&world, &mut pool, 1, &world.sequences[0].tokens);
    pool.free(1).unwrap();
    assert_eq!(pool.free_slots(), 1);
    assert_eq!(pool.allocate(), Ok(1));
    assert!(state(&pool, 1).concat().iter().all(|x| x.to_bits() == 0));
}

#[test]
fn allocating_and_freeing_leave_other_slots_alone() {
    let world = World::new(&spec(), DTypes::F32, &[3], 37);
    let mut pool = pitched_pool(DTypes::F32, 3, 5);
    let [left, middle, right] = [(); 3].map(|()| pool.allocate().unwrap());
    for slot in [left, middle, right] {
        decode(&world, &mut pool, slot, &world.sequences[0].tokens);
    }
    let before = [left, right].map(|slot| state(&pool, slot));
    pool.free(middle).unwrap();
    pool.allocate().unwrap();
    assert_eq!([left, right].map(|slot| state(&pool, slot)), before);
}

#[test]
fn a_restored_sequence_goes_on_as_if_never_interrupted() {
    at_every_phase(|world, tokens, decoded| {
        let (before, rest) = tokens.split_at(decoded);
        let mut pool = pool(world.dtypes, 2);
        let slot = pool.allocate().unwrap();
        decode(world, &mut pool, slot, before);
        let snapshot = pool.snapshot(slot).unwrap();
        let expected = (decode(world, &mut pool, slot, rest), state(&pool, slot));

        // Into the same slot, another one, and a pool of another pitch.
        pool.restore(slot, &snapshot).unwrap();
        assert_eq!((decode(world, &mut pool, slot, rest), state(&pool, slot)), expected);
        let other = pool.allocate().unwrap();
        decode(world, &mut pool, other, &tokens[..3]);
        pool.restore(other, &snapshot).unwrap();
        assert_eq!((decode(world, &mut pool, other, rest), state(&pool, other)), expected);
        let mut pool = pitched_pool(world.dtypes, 4, 13);
        let slots = [(); 4].map(|()| pool.allocate().unwrap());
        pool.restore(slots[2], &snapshot).unwrap();
        assert_eq!((decode(world, &mut pool, slots[2], rest), state(&pool, slots[2])), expected);
        assert_eq!(snapshot.bytes(), {
            let conv = (spec().conv_width() - 1) * spec().channels();
            let DTypes { activations, recurrent } = world.dtypes;
            spec().state_len() * recurrent.size() + conv * activations.size()
        });
    });
}

#[test]
fn a_copied_sequence_goes_its_own_way() {
    at_every_phase(|world, tokens, decoded| {
        let (before, rest) = tokens.split_at(decoded);
        let mut pool = pitched_pool(world.dtypes, 3, 3);
        let [from, to, straight] = [(); 3].map(|()| pool.allocate().unwrap());
        decode(world, &mut pool, from, before);
        decode(world, &mut pool, straight, before);
        decode(world, &mut pool, to, &tokens[..2]);
        pool.copy(from, to).unwrap();
        assert_eq!(state(&pool, to), state(&pool, from));

        let fork = decode(world, &mut pool, to, rest);
        assert_eq!(state(&pool, from), state(&pool, straight));
        assert_eq!(fork, decode(world, &mut pool, straight, rest));
        assert_eq!(state(&pool, to), state(&pool, straight));
        assert_ne!(state(&pool, to), state(&pool, from));
        pool.copy(to, to).unwrap();
        assert_eq!(state(&pool, to), state(&pool, straight));
    });
}

#[test]
fn set_and_read_are_inverse_at_every_phase() {
    at_every_phase(|world, tokens, decoded| {
        let mut pool = pitched_pool(world.dtypes, 2, 1);
        decode(world, &mut pool, 1, &tokens[..decoded]);
        world.set(&mut pool, 1, 0);
        let sequence = &world.sequences[0];
        assert_eq!(state(&pool, 1), [sequence.recurrent.clone(), sequence.conv.clone()]);
    });
}

#[test]
fn a_pool_larger_than_memory_costs_only_what_is_used() {
    let spec = LayerSpec::new(16, 32, 128, 128).unwrap();
    let options = PoolOptions { conv: DType::BF16, ..PoolOptions::new(100_000) };
    let mut pool = StatePool::new(&spec, &options).unwrap();
    let slot = pool.allocate().unwrap();
    assert!(pool.recurrent(slot).unwrap().iter().all(|&x| x == 0.0));
    assert_eq!(pool.free_slots(), 99_999);
}
