//! Options that own what they borrowed are the same options.

use xent::{AllowedTokens, Backend, CrossEntropy, EmptyMean, Logits, OwnedCrossEntropy, Reduction};

#[test]
fn the_options_are_the_same() {
    let (class_weights, token_weights) = ([1.0_f32, 2.0, f32::MIN], [0.5_f64, 0.0]);
    let words = [0b101, 0b111, 0b011];
    let plain = CrossEntropy::new();
    let all = plain
        .clone()
        .ignore_index(7)
        .reduction(Reduction::MeanOver(3.0))
        .empty_mean(EmptyMean::Zero)
        .backend(Backend::Scalar)
        .label_smoothing(0.1)
        .z_loss(0.2)
        .logit_scale(0.3)
        .temperature(0.4)
        .softcap_of_all(0.5)
        .class_weights(&class_weights)
        .token_weights(&token_weights)
        .allowed_tokens(AllowedTokens::new(&words).stride(2));
    let none = plain.clone().no_ignore_index().token_weights(&[0.0_f32; 0]);
    let ids = [7, -100, 0];
    let several = plain.clone().ignore_indices(&ids);
    for options in [plain, all, none, several] {
        let owned = OwnedCrossEntropy::from(&options);
        assert_eq!(owned.options(), options);
        assert_eq!(OwnedCrossEntropy::from(&owned.options()), owned.clone());
    }
}

#[test]
fn what_was_borrowed_may_be_gone() {
    let owned: Vec<OwnedCrossEntropy> = (1..4)
        .map(|i| {
            let (of_classes, of_tokens) = (vec![1.0, f64::from(i)], vec![f64::from(i); 2]);
            let words = vec![0b11 | 1 << i; 2];
            let options = CrossEntropy::new().class_weights(&of_classes).token_weights(&of_tokens);
            OwnedCrossEntropy::from(&options.allowed_tokens(AllowedTokens::new(&words)))
        })
        .collect();
    let logits = Logits::new(&[0.0_f64; 4], 2, 2).unwrap();
    for (owned, i) in owned.iter().zip(1..) {
        let sum = owned.options().reduction(Reduction::Sum).forward(logits, &[0i64, 1]).unwrap();
        let i = f64::from(i);
        assert!((sum - i * (1.0 + i) * 2f64.ln()).abs() < 1e-14, "{sum}");
    }
}
