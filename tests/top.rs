//! The most probable tokens, as they are collected.

use proptest::prelude::*;
use xent::internals::{MAX_TOP_K, Top};

proptest! {
    #[test]
    fn as_sorting(
        values in prop::collection::vec(
            prop_oneof![(-9..9i32).prop_map(|x| x as f32), Just(f32::NAN), Just(-0.0), Just(f32::NEG_INFINITY)],
            0..300,
        ),
        k in 0..140usize,
        cut in 0..300usize,
    ) {
        let mut all: Vec<(f32, u32)> = values.iter().copied().zip(0..).collect();
        let rank = |x: f32| if x.is_nan() { f32::INFINITY } else { x + 0.0 };
        all.sort_by(|a, b| rank(b.0).total_cmp(&rank(a.0)).then(a.1.cmp(&b.1)));
        all.truncate(k.min(MAX_TOP_K));
        let cut = cut.min(values.len());
        let (mut a, mut b) = (Top::new(k), Top::new(k));
        for (id, &value) in values.iter().enumerate() {
            if id < cut { &mut a } else { &mut b }.insert(value, id as u32);
        }
        a.sort();
        b.sort();
        b.merge(&a);
        let ids = |entries: &[(f32, u32)]| entries.iter().map(|&(_, id)| id).collect::<Vec<_>>();
        prop_assert_eq!(ids(b.entries()), ids(&all));
    }
}
