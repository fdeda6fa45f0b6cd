//! What a caller can get wrong is an error of candle, and says what it is.

use crate::common::{CPU, ids, logits};
use candle_core::{DType, Result, Tensor, Var};
use xent_candle::xent::{CrossEntropy, LogProbs};
use xent_candle::{
    cross_entropy, cross_entropy_with, evaluate, logprobs, loss_and_gradient, token_logprobs,
    token_losses,
};

fn message<T>(result: Result<T>) -> String {
    match result {
        Ok(_) => panic!("this should have been an error"),
        // With RUST_BACKTRACE it goes on.
        Err(error) => error.to_string().lines().next().unwrap_or_default().to_owned(),
    }
}

/// All functions that take logits and targets agree.
#[track_caller]
fn all(logits: &Tensor, targets: &Tensor, expected: &str) {
    let ce = CrossEntropy::new();
    let tracked = Var::from_tensor(logits).unwrap();
    for logits in [logits, tracked.as_tensor()] {
        assert_eq!(message(cross_entropy_with(&ce, logits, targets)), expected);
        assert_eq!(message(token_losses(&ce, logits, targets)), expected);
        assert_eq!(message(logprobs(logits, targets)), expected);
        assert_eq!(message(evaluate(&ce, logits, targets)), expected);
        assert_eq!(message(loss_and_gradient(&ce, logits, targets)), expected);
        if logits.rank() == 2 {
            assert_eq!(message(cross_entropy(logits, targets)), expected);
            assert!(
                logits.dtype() != DType::F32
                    || candle_nn::loss::cross_entropy(logits, targets).is_err()
            );
        }
    }
}

#[test]
fn shapes() -> Result<()> {
    let x = logits((4, 6), DType::F32, 1);
    for shape in [vec![24], vec![2, 2, 3, 2], vec![1, 4, 6]] {
        let message = message(cross_entropy(&x.reshape(shape.clone())?, &ids(4, 6)));
        assert_eq!(message, format!("cross_entropy expects logits [rows, vocab], not {shape:?}"));
    }
    all(
        &x.flatten_all()?,
        &ids(4, 6),
        "logits must be [rows, vocab] or [batch, time, vocab], not [24]",
    );
    all(&x, &ids(3, 6), "targets [3] do not go with logits [4, 6]: one for each of [4]");
    all(
        &x,
        &ids(4, 6).unsqueeze(1)?,
        "targets [4, 1] do not go with logits [4, 6]: one for each of [4]",
    );
    all(
        &x.reshape((2, 2, 6))?,
        &ids(4, 6),
        "targets [4] do not go with logits [2, 2, 6]: one for each of [2, 2]",
    );
    Ok(())
}

#[test]
fn targets_out_of_range() -> Result<()> {
    let x = logits((3, 6), DType::F32, 1);
    let expected = "row 1: target 6 is out of range for a vocabulary of 6";
    all(&x, &Tensor::new(&[0u32, 6, 7], CPU)?, expected);
    all(&x, &Tensor::new(&[0u8, 6, 7], CPU)?, expected);
    all(&x, &Tensor::new(&[0i64, 6, 7], CPU)?, expected);
    all(
        &x,
        &Tensor::new(&[0i64, 5, -1], CPU)?,
        "row 2: target -1 is out of range for a vocabulary of 6; ignore_index(-1) ignores such rows",
    );
    // No rows to index, as candle has it, but for -100.
    let none = logits((3, 1), DType::F32, 1).narrow(1, 0, 0)?;
    let targets = Tensor::new(&[-100i64, 0, 0], CPU)?;
    let error = message(token_losses(&CrossEntropy::new(), &none, &targets));
    assert_eq!(error, "row 1: target 0 is out of range for a vocabulary of 0");
    Ok(())
}

/// candle's `gather` takes the largest number of a type for padding.
#[test]
fn the_largest_target_is_no_padding() -> Result<()> {
    let x = logits((2, 6), DType::F32, 1);
    let targets = Tensor::new(&[1, u32::MAX], CPU)?;
    assert!(candle_nn::loss::cross_entropy(&x, &targets).is_ok());
    let error = message(cross_entropy(&x, &targets));
    assert_eq!(error, "row 1: target 4294967295 is out of range for a vocabulary of 6");
    let padded = CrossEntropy::new().ignore_index(u32::MAX.into());
    let loss = cross_entropy_with(&padded, &x, &targets)?.to_scalar::<f32>()?;
    let first =
        cross_entropy(&x.narrow(0, 0, 1)?, &targets.narrow(0, 0, 1)?)?.to_scalar::<f32>()?;
    assert_eq!(loss, first);

    // Class 255 of 256 is one, and for candle it is not.
    let x = logits((1, 256), DType::F32, 2);
    let last = Tensor::new(&[255u8], CPU)?;
    assert_eq!(candle_nn::loss::cross_entropy(&x, &last)?.to_scalar::<f32>()?.abs(), 0.0);
    let same = cross_entropy(&x, &Tensor::new(&[255u32], CPU)?)?.to_scalar::<f32>()?;
    assert_eq!(cross_entropy(&x, &last)?.to_scalar::<f32>()?, same);
    assert!(same > 0.0);
    Ok(())
}

#[test]
fn types() -> Result<()> {
    let x = logits((3, 6), DType::F32, 1);
    for dtype in [DType::U8, DType::U32, DType::I64] {
        let message = message(cross_entropy(&x.to_dtype(dtype)?, &ids(3, 6)));
        assert_eq!(
            message,
            format!("logits must be f32, f64, bf16 or f16, not {}", dtype.as_str())
        );
    }
    let eight = x.to_dtype(DType::F8E4M3)?;
    all(&eight, &ids(3, 6), "logits must be f32, f64, bf16 or f16, not f8e4m3");
    let float = ids(3, 6).to_dtype(DType::F32)?;
    all(&x, &float, "targets must be u8, u32, i16, i32 or i64, not f32");

    let request = LogProbs::new().top_k(1);
    let wide = x.to_dtype(DType::F64)?;
    assert_eq!(
        message(token_logprobs::<f32>(&request, &wide)),
        "logits are f64: results in f32 are of those in F32 BF16 F16"
    );
    assert_eq!(
        message(token_logprobs::<f64>(&request, &x)),
        "logits are f32: results in f64 are of those in F64"
    );
    assert_eq!(token_logprobs::<f64>(&request, &wide)?.top_ids.len(), 3);
    Ok(())
}

#[test]
fn options() -> Result<()> {
    let (x, targets) = (logits((3, 6), DType::F32, 1), ids(3, 6));
    let (double, short) = ([1.0_f64; 6], [1.0_f32; 5]);
    let cases = [
        (CrossEntropy::new().label_smoothing(1.5), "label_smoothing = 1.5 is not between 0 and 1"),
        (CrossEntropy::new().class_weights(&short), "class_weights: 5 values instead of 6"),
        (
            CrossEntropy::new().class_weights(&double),
            "`class_weights` must be f32 for these logits, not f64",
        ),
    ];
    for (options, expected) in cases {
        assert_eq!(message(cross_entropy_with(&options, &x, &targets)), expected);
        assert_eq!(message(token_losses(&options, &x, &targets)), expected);
        assert_eq!(message(evaluate(&options, &x, &targets)), expected);
        assert_eq!(message(loss_and_gradient(&options, &x, &targets)), expected);
    }
    let request = LogProbs::new().temperature(0.0);
    assert!(message(token_logprobs::<f32>(&request, &x)).contains("temperature"));
    Ok(())
}
