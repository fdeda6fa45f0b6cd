//! The loss as a part of larger graphs, with options and per token.

use crate::common::{CPU, ids, logits, relative, trained, value, values};
use candle_core::{D, DType, Result, Tensor, Var};
use candle_nn::loss::cross_entropy as candle;
use candle_nn::ops::log_softmax;
use candle_nn::{AdamW, Embedding, Linear, Module, Optimizer, ParamsAdamW, SGD};
use xent_candle::xent::{AllowedTokens, CrossEntropy, EmptyMean, Reduction};
use xent_candle::{cross_entropy, cross_entropy_with, logprobs, loss_and_gradient, token_losses};

type Loss = fn(&Tensor, &Tensor) -> Result<Tensor>;
/// Of logits, targets and a loss.
type Graph = fn(&Tensor, &Tensor, Loss) -> Result<Tensor>;

/// That a function of the loss has the value and the gradient it has with candle's loss, in f64.
fn same(
    name: &str,
    x: &Tensor,
    ours: impl Fn(&Tensor) -> Result<Tensor>,
    theirs: impl Fn(&Tensor) -> Result<Tensor>,
) {
    let (a, ga) = trained(x, ours).unwrap();
    let (b, gb) = trained(x, theirs).unwrap();
    let apart = relative(&values(&a), &values(&b)).max(relative(&values(&ga), &values(&gb)));
    assert!(apart < 1e-12, "{name}: {apart}");
}

#[test]
fn whatever_is_computed_from_the_loss() {
    let x = logits((5, 17), DType::F64, 1);
    let targets = &ids(5, 17);
    let graphs: [(&str, Graph); 7] = [
        ("times 3", |x, t, loss| loss(x, t)? * 3.0),
        ("negative", |x, t, loss| loss(x, t)?.neg()),
        ("used twice", |x, t, loss| {
            let loss = loss(x, t)?;
            &loss + &loss.affine(2.0, 0.0)?
        }),
        ("perplexity", |x, t, loss| loss(x, t)?.exp()),
        ("two losses of the same logits", |x, t, loss| loss(x, t)?.sqr()? + loss(x, t)?),
        // Nothing is counted twice where logits are used elsewhere.
        ("and decay of the logits", |x, t, loss| loss(x, t)? + (x.sqr()?.mean_all()? * 0.1)?),
        ("two losses of functions of them", |x, t, loss| {
            loss(&x.tanh()?, t)? * loss(&(x * 0.5)?, t)?
        }),
    ];
    for (name, graph) in graphs {
        same(name, &x, |x| graph(x, targets, cross_entropy), |x| graph(x, targets, candle));
    }
}

#[test]
fn a_graph_can_be_used_for_two_backward_passes() -> Result<()> {
    let x = Var::from_tensor(&logits((4, 9), DType::F32, 2))?;
    let loss = cross_entropy(&x, &ids(4, 9))?;
    let (a, b) = (loss.backward()?, loss.backward()?);
    assert_eq!(values(a.get(&x).unwrap()), values(b.get(&x).unwrap()));
    Ok(())
}

/// The gradient is of the logits and targets that there are then, and of the logsumexp that was: not to be relied on, but
/// this is what the documentation warns of.
#[test]
fn logits_that_change_before_the_backward_pass_are_mixed_with_those_before() -> Result<()> {
    let before = logits((4, 9), DType::F64, 20);
    let after = logits((4, 9), DType::F64, 21);
    let targets = ids(4, 9);
    let x = Var::from_tensor(&before)?;
    let loss = cross_entropy(&x, &targets)?;
    let gradient = |x: &Var| Ok::<_, candle_core::Error>(values(loss.backward()?.get(x).unwrap()));
    let honest = gradient(&x)?;

    x.set(&after)?;
    let mixed = gradient(&x)?;
    let lse = before.exp()?.sum_keepdim(1)?.log()?;
    let p = values(&after.broadcast_sub(&lse)?.exp()?);
    let targets: Vec<i64> = targets.to_vec1()?;
    let formula: Vec<f64> = (0..4 * 9)
        .map(|i| (p[i] - f64::from(u8::from(targets[i / 9] as usize == i % 9))) / 4.0)
        .collect();
    assert!(relative(&mixed, &formula) < 1e-12);
    assert!(relative(&mixed, &honest) > 0.1);
    let (_, fresh) = trained(&after, |x| cross_entropy(x, &ids(4, 9)))?;
    assert!(relative(&mixed, &values(&fresh)) > 0.1);

    x.set(&before)?;
    assert_eq!(gradient(&x)?, honest);
    Ok(())
}

/// Targets that are a variable make candle ask for gradients; there are none.
#[test]
fn targets_have_no_gradient() -> Result<()> {
    let x = logits((4, 9), DType::F32, 2);
    let targets = Var::from_tensor(&ids(4, 9))?;
    let loss = cross_entropy(&x, &targets)?;
    assert!(loss.track_op());
    let gradients = loss.backward()?;
    assert!(gradients.get(&x).is_none() && gradients.get(&targets).is_none());

    let var = Var::from_tensor(&x)?;
    let gradients = cross_entropy(&var, &targets)?.backward()?;
    let (_, expected) = trained(&x, |x| cross_entropy(x, &ids(4, 9)))?;
    assert_eq!(values(gradients.get(&var).unwrap()), values(&expected));
    assert!(gradients.get(&targets).is_none());
    Ok(())
}

/// A scaled loss of f16 logits overflows; that of each token is in f32, and only the gradient is in f16.
#[test]
fn losses_of_f16_can_be_scaled_by_65536() -> Result<()> {
    let x = logits((5, 17), DType::F16, 22);
    let targets = &ids(5, 17);
    let scale = 65536.0;
    let direct = (cross_entropy(&x, targets)? * scale)?;
    assert!(value(&direct).is_infinite());

    let ce = CrossEntropy::new();
    let (loss, gradient) = trained(&x, |x| token_losses(&ce, x, targets)?.mean_all()? * scale)?;
    let in_f64 = x.to_dtype(DType::F64)?;
    let (exact, exact_gradient) = trained(&in_f64, |x| candle(x, targets)? * scale)?;
    assert_eq!((loss.dtype(), gradient.dtype()), (DType::F32, DType::F16));
    assert!((value(&loss) / value(&exact) - 1.0).abs() < 1e-6);
    for (g, exact) in values(&gradient).iter().zip(values(&exact_gradient)) {
        assert!(
            (g - exact).abs() <= 2f64.powi(-11) * exact.abs() + 2f64.powi(-24),
            "{g:e} {exact:e}"
        );
    }
    Ok(())
}

/// Next tokens without `narrow` of the logits: shifted targets, and -100 at the end.
#[test]
fn shifted_targets_are_the_narrowed_logits() -> Result<()> {
    let (batch, time, vocab) = (3, 5, 11);
    let x = logits((batch * time, vocab), DType::F64, 23).reshape((batch, time, vocab))?;
    let next = ids(batch * time, vocab).reshape((batch, time))?.narrow(1, 1, time - 1)?;
    let shifted = Tensor::cat(&[&next, &Tensor::full(-100i64, (batch, 1), CPU)?], 1)?;
    let flat = next.flatten_all()?;
    same(
        "shifted",
        &x,
        |x| cross_entropy_with(&CrossEntropy::new(), x, &shifted),
        |x| candle(&x.narrow(1, 0, time - 1)?.contiguous()?.flatten_to(1)?, &flat),
    );
    Ok(())
}

/// One pass has the loss and the gradient of the graph, bit for bit, and neither is part of a graph.
#[test]
fn one_pass_is_that_of_the_graph() -> Result<()> {
    let ce = CrossEntropy::new;
    let all = ce().label_smoothing(0.1).z_loss(0.01).softcap(4.0).temperature(0.8);
    let cases =
        [ce(), ce().reduction(Reduction::Sum), ce().reduction(Reduction::MeanOver(7.0)), all];
    let targets = Tensor::new(&[3i64, -100, 5, 0, 16, 1], CPU)?;
    for dtype in [DType::F32, DType::F64, DType::BF16, DType::F16] {
        let x = logits((6, 17), dtype, 24);
        for options in &cases {
            let (loss, gradient) = trained(&x, |x| cross_entropy_with(options, x, &targets))?;
            let var = Var::from_tensor(&x)?;
            let (alone, of_logits) = loss_and_gradient(options, &var, &targets)?;
            assert!(!alone.track_op() && !of_logits.track_op());
            assert_eq!(
                (alone.dtype(), alone.dims(), value(&alone)),
                (dtype, &[][..], value(&loss))
            );
            assert_eq!((of_logits.dtype(), of_logits.dims()), (dtype, &[6, 17][..]));
            assert_eq!(values(&of_logits), values(&gradient), "{dtype:?} {options:?}");
        }
        let (x, targets) = (x.reshape((2, 3, 17))?, targets.reshape((2, 3))?);
        assert_eq!(loss_and_gradient(&ce(), &x, &targets)?.1.dims(), [2, 3, 17]);
    }
    Ok(())
}

/// Weights of one batch, which no graph could keep.
#[test]
fn one_pass_borrows_its_weights() -> Result<()> {
    let (x, targets) = (logits((4, 9), DType::F64, 25), ids(4, 9));
    let weights: Vec<f64> = (0..9).map(|i| 0.5 + f64::from(i)).collect();
    let (loss, gradient) =
        loss_and_gradient(&CrossEntropy::new().class_weights(&weights), &x, &targets)?;
    let of_token: Vec<f64> = values(&targets).iter().map(|&t| weights[t as usize]).collect();
    let of_token = Tensor::new(of_token, CPU)?;
    let (expected, expected_gradient) = trained(&x, |x| {
        let losses = token_losses(&CrossEntropy::new(), x, &targets)?;
        (losses * &of_token)?.sum_all()?.div(&of_token.sum_all()?)
    })?;
    assert!((value(&loss) / value(&expected) - 1.0).abs() < 1e-13);
    assert!(relative(&values(&gradient), &values(&expected_gradient)) < 1e-12);
    Ok(())
}

/// As the documentation has it: a head by hand, and the rest by candle.
#[test]
fn a_backward_pass_that_is_continued_by_hand() -> Result<()> {
    let below = logits((4, 8), DType::F64, 26);
    let head = logits((5, 8), DType::F64, 27);
    let targets = ids(4, 5);
    let states = Var::from_tensor(&below)?;
    let weight = Var::from_tensor(&head)?;
    let loss = cross_entropy(&states.tanh()?.matmul(&weight.t()?)?, &targets)?;
    let expected = loss.backward()?;

    let above = states.tanh()?;
    let (alone, gradient) =
        loss_and_gradient(&CrossEntropy::new(), &above.detach().matmul(&head.t()?)?, &targets)?;
    let of_head = gradient.t()?.matmul(&above.detach())?;
    let found = (&above * gradient.matmul(&head)?)?.sum_all()?.backward()?;
    assert_eq!(value(&alone), value(&loss));
    let close = |a: &Tensor, b: &Tensor| relative(&values(a), &values(b)) < 1e-12;
    assert!(close(&of_head, expected.get(&weight).unwrap()));
    assert!(close(found.get(&states).unwrap(), expected.get(&states).unwrap()));
    Ok(())
}

#[test]
fn what_is_not_tracked_has_no_graph() -> Result<()> {
    let x = logits((4, 9), DType::F32, 2);
    assert!(!cross_entropy(&x, &ids(4, 9))?.track_op());
    assert!(!logprobs(&x, &ids(4, 9))?.track_op());
    let var = Var::from_tensor(&x)?;
    assert!(cross_entropy(&var, &ids(4, 9))?.track_op());
    assert!(!cross_entropy(&var.detach(), &ids(4, 9))?.track_op());
    Ok(())
}

/// The options in candle's operations.
struct Composed {
    smoothing: f64,
    z_loss: f64,
    scale: f64,
    softcap: Option<f64>,
    temperature: f64,
    weights: Option<Vec<f64>>,
}

impl Composed {
    /// Cross-entropy and z-loss of each row.
    fn losses(&self, x: &Tensor, targets: &Tensor) -> Result<(Tensor, Tensor)> {
        let x = (x * self.scale)?;
        let x = match self.softcap {
            Some(cap) => ((x / cap)?.tanh()? * cap)?,
            None => x,
        };
        let z = (x / self.temperature)?;
        let (rows, vocab) = z.dims2()?;
        let nll = log_softmax(&z, D::Minus1)?.neg()?;
        let weights = match &self.weights {
            Some(weights) => Tensor::new(&weights[..], CPU)?.to_dtype(z.dtype())?,
            None => Tensor::ones(vocab, z.dtype(), CPU)?,
        };
        let nll = nll.broadcast_mul(&weights)?;
        let at = nll.gather(&targets.unsqueeze(1)?, 1)?.reshape(rows)?;
        let all = nll.sum(1)?;
        let e = self.smoothing;
        let loss = ((at * (1.0 - e))? + (all * (e / vocab as f64))?)?;
        let lse = z.exp()?.sum(1)?.log()?;
        Ok((loss, (lse.sqr()? * self.z_loss)?))
    }
}

#[test]
fn options_have_the_gradients_of_their_formulas() -> Result<()> {
    let weights = vec![0.5, 1.0, 2.0, 0.25, 1.5, 1.0, 1.0, 3.0, 0.125, 1.0, 0.75, 2.5, 1.0];
    let none = || Composed {
        smoothing: 0.0,
        z_loss: 0.0,
        scale: 1.0,
        softcap: None,
        temperature: 1.0,
        weights: None,
    };
    let ce = CrossEntropy::new;
    let all = ce().label_smoothing(0.1).z_loss(0.01).logit_scale(1.5).softcap(4.0).temperature(0.8);
    let cases: [(&str, CrossEntropy<'_>, Composed); 7] = [
        ("label smoothing", ce().label_smoothing(0.2), Composed { smoothing: 0.2, ..none() }),
        ("z-loss", ce().z_loss(0.05), Composed { z_loss: 0.05, ..none() }),
        ("scale", ce().logit_scale(0.7), Composed { scale: 0.7, ..none() }),
        ("softcap", ce().softcap(3.0), Composed { softcap: Some(3.0), ..none() }),
        ("temperature", ce().temperature(2.0), Composed { temperature: 2.0, ..none() }),
        (
            "class weights",
            ce().class_weights(&weights),
            Composed { weights: Some(weights.clone()), ..none() },
        ),
        (
            "all of them",
            all.class_weights(&weights),
            Composed {
                smoothing: 0.1,
                z_loss: 0.01,
                scale: 1.5,
                softcap: Some(4.0),
                temperature: 0.8,
                weights: Some(weights.clone()),
            },
        ),
    ];
    let (rows, vocab) = (6, 13);
    let x = logits((rows, vocab), DType::F64, 3);
    let targets = &ids(rows, vocab);
    let factors = Tensor::new(&[0.5_f64, -1.0, 0.0, 2.0, 1.0, 8.0], CPU)?;
    for (name, options, formula) in cases {
        let weight: f64 = match &formula.weights {
            Some(w) => values(targets).iter().map(|&t| w[t as usize]).sum(),
            None => rows as f64,
        };
        for (reduction, divisor, z_divisor) in [
            (Reduction::Mean, weight, rows as f64),
            (Reduction::Sum, 1.0, 1.0),
            (Reduction::MeanOver(16.0), 16.0, 16.0),
        ] {
            let options = options.clone().reduction(reduction);
            same(
                name,
                &x,
                |x| cross_entropy_with(&options, x, targets),
                |x| {
                    let (loss, z_loss) = formula.losses(x, targets)?;
                    (loss.sum_all()? / divisor)? + (z_loss.sum_all()? / z_divisor)?
                },
            );
        }
        // One upstream gradient for each row.
        same(
            name,
            &x,
            |x| (token_losses(&options, x, targets)? * &factors)?.sum_all(),
            |x| {
                let (loss, z_loss) = formula.losses(x, targets)?;
                ((loss + z_loss)? * &factors)?.sum_all()
            },
        );
        let (loss, z_loss) = formula.losses(&x, targets)?;
        let losses = token_losses(&options.reduction(Reduction::MeanOver(3.0)), &x, targets)?;
        assert!(relative(&values(&losses), &values(&(loss + z_loss)?)) < 1e-13, "{name}");
    }
    Ok(())
}

#[test]
fn logprobs_are_those_of_log_softmax() -> Result<()> {
    let (rows, vocab) = (7, 31);
    let targets = &ids(rows, vocab);
    let of = |x: &Tensor| log_softmax(x, 1)?.gather(&targets.unsqueeze(1)?, 1)?.squeeze(1);
    let x = logits((rows, vocab), DType::F64, 4);
    // Policy gradient: the ratio of probabilities, clipped nowhere, times an advantage.
    let (old, advantage) = (
        logits((rows, 1), DType::F64, 5).squeeze(1)?,
        logits((rows, 1), DType::F64, 6).squeeze(1)?,
    );
    let objective = |logprobs: Tensor| ((logprobs - &old)?.exp()? * &advantage)?.mean_all();
    same("policy", &x, |x| objective(logprobs(x, targets)?), |x| objective(of(x)?));

    for (dtype, result) in [
        (DType::F64, DType::F64),
        (DType::F32, DType::F32),
        (DType::BF16, DType::F32),
        (DType::F16, DType::F32),
    ] {
        let x = x.to_dtype(dtype)?;
        let found = logprobs(&x, targets)?;
        assert_eq!((found.dtype(), found.dims()), (result, &[rows][..]));
        let exact = values(&of(&x.to_dtype(DType::F64)?)?);
        let bound = if result == DType::F64 { 1e-14 } else { 2f64.powi(-23) };
        for (a, b) in values(&found).iter().zip(&exact) {
            assert!((a - b).abs() <= bound * b.abs(), "{dtype:?}: {a} {b}");
        }
        let (_, gradient) = trained(&x, |x| logprobs(x, targets)?.sum_all())?;
        let (_, exact) = trained(&x.to_dtype(DType::F64)?, |x| of(x)?.sum_all())?;
        let bound = match dtype {
            DType::BF16 => 2f64.powi(-8),
            DType::F16 => 2f64.powi(-10),
            _ => 1e-6,
        };
        assert!(relative(&values(&gradient), &values(&exact)) < bound, "{dtype:?}");
    }
    Ok(())
}

#[test]
fn sequences_are_not_copied_to_be_rows() -> Result<()> {
    let (batch, time, vocab) = (3, 5, 11);
    let x = logits((batch * time, vocab), DType::F64, 7).reshape((batch, time, vocab))?;
    let tokens = ids(batch * time, vocab).reshape((batch, time))?;
    let targets = &tokens.narrow(1, 1, time - 1)?;
    let flat = targets.flatten_all()?;
    let options = &CrossEntropy::new();
    for transposed in [false, true] {
        let view = |x: &Tensor| {
            // [time, batch, vocab] in memory, the second time.
            let x = if transposed {
                x.transpose(0, 1)?.contiguous()?.transpose(0, 1)?
            } else {
                x.clone()
            };
            x.narrow(1, 0, time - 1)
        };
        same(
            "next tokens",
            &x,
            |x| cross_entropy_with(options, &view(x)?, targets),
            |x| candle(&view(x)?.contiguous()?.flatten_to(1)?, &flat),
        );
        let losses = token_losses(options, &view(&x)?, targets)?;
        assert_eq!(losses.dims(), [batch, time - 1]);
        let rows = token_losses(options, &view(&x)?.contiguous()?.flatten_to(1)?, &flat)?;
        assert_eq!(values(&losses), values(&rows));
    }
    Ok(())
}

#[test]
fn ignored_rows_have_no_part() -> Result<()> {
    let x = logits((4, 6), DType::F32, 8);
    let targets = Tensor::new(&[3i64, -100, 5, -100], CPU)?;
    let (loss, gradient) = trained(&x, |x| cross_entropy(x, &targets))?;
    let kept = Tensor::new(&[0u32, 2], CPU)?;
    let two = Tensor::new(&[3u32, 5], CPU)?;
    let (of_two, gradient_of_two) =
        trained(&x.index_select(&kept, 0)?, |x| cross_entropy(x, &two))?;
    assert_eq!(value(&loss), value(&of_two));
    assert_eq!(values(&gradient.index_select(&kept, 0)?), values(&gradient_of_two));
    assert_eq!(values(&gradient.narrow(0, 1, 1)?), [0.0; 6]);
    let found = logprobs(&x, &targets)?.to_vec1::<f32>()?;
    assert_eq!(found[1].to_bits(), 0);

    let none = Tensor::new(&[-100i64; 4], CPU)?;
    assert!(value(&cross_entropy(&x, &none)?).is_nan());
    let options = CrossEntropy::new().empty_mean(EmptyMean::Zero);
    let (loss, gradient) = trained(&x, |x| cross_entropy_with(&options, x, &none))?;
    assert_eq!((value(&loss), values(&gradient)), (0.0, vec![0.0; 24]));
    Ok(())
}

#[test]
fn bad_rows_are_nan_and_do_not_touch_others() -> Result<()> {
    let mut numbers = crate::common::noise(5 * 4, 9);
    numbers[0] = f32::NAN;
    numbers[5] = f32::INFINITY;
    numbers[8..12].fill(f32::NEG_INFINITY);
    numbers[13] = f32::NEG_INFINITY; // a mask, not the target
    let x = Tensor::from_vec(numbers, (5, 4), CPU)?;
    let targets = Tensor::new(&[1u32, 1, 2, 0, 3], CPU)?;
    let losses = token_losses(&CrossEntropy::new(), &x, &targets)?.to_vec1::<f32>()?;
    assert_eq!(
        losses.iter().map(|loss| loss.is_nan()).collect::<Vec<_>>(),
        [true, true, true, false, false]
    );
    let (loss, gradient) = trained(&x, |x| cross_entropy(x, &targets))?;
    assert!(value(&loss).is_nan());
    let gradient = gradient.to_vec2::<f32>()?;
    assert!(gradient[..3].iter().flatten().all(|g| g.is_nan()));
    assert!(gradient[3..].iter().flatten().all(|g| g.is_finite()));
    assert_eq!(gradient[3][1], 0.0);
    // As candle has it, of the rows that it can compute.
    let rows = x.narrow(0, 3, 2)?;
    assert!(
        (value(&cross_entropy(&rows, &targets.narrow(0, 3, 2)?)?)
            - value(&candle(&rows, &targets.narrow(0, 3, 2)?)?))
        .abs()
            < 1e-6
    );
    Ok(())
}

/// What `where_cond` does not select, or a mask multiplies by 0, has derivative 0 by its loss; as
/// has a loss that is not used.
#[test]
fn rows_whose_loss_has_no_part_have_no_gradient_whatever_they_hold() -> Result<()> {
    let (rows, vocab) = (8, 6);
    let mut numbers = crate::common::noise(rows * vocab, 30);
    numbers[0] = f32::NAN;
    numbers[vocab + 2] = f32::INFINITY;
    numbers[2 * vocab..3 * vocab].fill(f32::NEG_INFINITY);
    numbers[3 * vocab + 3] = f32::NEG_INFINITY; // the target: a loss of +inf
    numbers[4 * vocab..5 * vocab].fill(f32::NAN);
    let bad = 5;
    let x = Tensor::from_vec(numbers, (rows, vocab), CPU)?;
    let targets = Tensor::new(&[0u32, 1, 2, 3, 4, 5, 0, 1], CPU)?;
    let is_kept: Vec<u8> = (0..rows).map(|row| u8::from(row >= bad)).collect();
    let is_kept = Tensor::new(is_kept, CPU)?;
    let weights = [1.0_f32, 0.5, 2.0, 1.0, 3.0, 0.25];
    let wide = weights.map(f64::from);
    let plain = CrossEntropy::new();
    let all = plain.clone().z_loss(0.01).label_smoothing(0.1).softcap(30.0).temperature(0.7);
    for dtype in [DType::F32, DType::F64, DType::BF16, DType::F16] {
        let x = x.to_dtype(dtype)?;
        let weighted = match dtype {
            DType::F64 => plain.clone().class_weights(&wide),
            _ => plain.clone().class_weights(&weights),
        };
        for options in [&plain, &all, &weighted.z_loss(0.1)] {
            let of = |f: &dyn Fn(&Tensor) -> Result<Tensor>| trained(&x, f);
            let (loss, gradient) = of(&|x| {
                let losses = token_losses(options, x, &targets)?;
                is_kept.where_cond(&losses, &losses.zeros_like()?)?.sum_all()
            })?;
            let kept = x.narrow(0, bad, rows - bad)?;
            let (want, want_gradient) = trained(&kept, |x| {
                token_losses(options, x, &targets.narrow(0, bad, rows - bad)?)?.sum_all()
            })?;
            assert!((value(&loss) - value(&want)).abs() <= 1e-6 * value(&want), "{dtype:?}");
            let (left_out, rest) =
                (gradient.narrow(0, 0, bad)?, gradient.narrow(0, bad, rows - bad)?);
            assert_eq!(values(&left_out), vec![0.0; bad * vocab], "{dtype:?}");
            assert_eq!(values(&rest), values(&want_gradient), "{dtype:?}");

            // A product with 0 leaves a loss of NaN, and no gradient of it.
            let (loss, product) = of(&|x| {
                let losses = token_losses(options, x, &targets)?;
                (&losses * is_kept.to_dtype(losses.dtype())?)?.sum_all()
            })?;
            assert!(value(&loss).is_nan());
            assert_eq!(values(&product), values(&gradient), "{dtype:?}");
            // From the middle of a batch, and by way of a copy.
            let (_, selected) = of(&|x| {
                let losses = token_losses(options, x, &targets)?;
                losses.narrow(0, bad, rows - bad)?.sum_all()
            })?;
            assert_eq!(values(&selected), values(&gradient), "{dtype:?}");
            let (_, padded) = of(&|x| {
                let wider = Tensor::cat(&[x, &x.zeros_like()?, x], 1)?.narrow(1, 0, vocab)?;
                let losses = token_losses(options, &wider, &targets)?;
                is_kept.where_cond(&losses, &losses.zeros_like()?)?.sum_all()
            })?;
            assert_eq!(values(&padded), values(&gradient), "{dtype:?}");
            let (_, transposed) = of(&|x| {
                let x = x.t()?.contiguous()?.t()?;
                let losses = token_losses(options, &x, &targets)?;
                is_kept.where_cond(&losses, &losses.zeros_like()?)?.sum_all()
            })?;
            assert_eq!(values(&transposed), values(&gradient), "{dtype:?}");
            // The whole loss, times 0.
            for zero in [0.0_f32, -0.0] {
                let (_, nothing) = of(&|x| {
                    let loss = cross_entropy_with(options, x, &targets)?;
                    &loss * Tensor::new(zero, CPU)?.to_dtype(loss.dtype())?
                })?;
                assert_eq!(values(&nothing), vec![0.0; rows * vocab], "{dtype:?}");
            }
        }
        // Sequences, of which one has losses that are not selected.
        let x = x.reshape((2, 4, vocab))?;
        let is_kept = is_kept.reshape((2, 4))?;
        let (_, gradient) = trained(&x, |x| {
            let losses = logprobs(x, &targets.reshape((2, 4))?)?;
            is_kept.where_cond(&losses, &losses.zeros_like()?)?.sum_all()
        })?;
        assert!(values(&gradient).iter().all(|g| g.is_finite()));
    }

    // Composed of candle's operations it is NaN.
    let composed = |x: &Tensor| {
        let logprobs = log_softmax(x, 1)?.gather(&targets.unsqueeze(1)?, 1)?.squeeze(1)?;
        is_kept.where_cond(&logprobs, &logprobs.zeros_like()?)?.sum_all()
    };
    let (_, gradient) = trained(&x, composed)?;
    assert!(values(&gradient)[..vocab].iter().any(|g| g.is_nan()));
    Ok(())
}

/// Weights that are made while a program runs, and gone before the backward pass.
#[test]
fn the_graph_owns_weights_and_masks() -> Result<()> {
    let (rows, vocab) = (6, 13);
    let targets = &ids(rows, vocab);
    for dtype in [DType::F32, DType::F64, DType::BF16] {
        let x = Var::from_tensor(&logits((rows, vocab), dtype, 31))?;
        let mut losses = vec![];
        let mut expected = vec![];
        for step in 0..3 {
            let class_weights = logits((1, vocab), DType::F32, 40 + step).abs()?.squeeze(0)?;
            let token_weights = logits((1, rows), DType::F32, 50 + step).squeeze(0)?;
            // All may be but one, which is no target.
            let words = vec![!(0b10_u32 << (2 * step)); rows];
            let (loss, exact) = {
                let single = class_weights.to_vec1::<f32>()?;
                let double: Vec<f64> = single.iter().map(|&w| w.into()).collect();
                let of_tokens = token_weights.to_vec1::<f32>()?;
                let mut options = CrossEntropy::new()
                    .token_weights(&of_tokens)
                    .allowed_tokens(AllowedTokens::new(&words))
                    .reduction(Reduction::Sum);
                options = match dtype {
                    DType::F64 => options.class_weights(&double),
                    _ => options.class_weights(&single),
                };
                let (_, exact) = loss_and_gradient(&options, &x, targets)?;
                (cross_entropy_with(&options, &x, targets)?, exact)
            };
            drop((class_weights, token_weights, words));
            losses.push(loss);
            expected.push(values(&exact));
        }
        for (loss, expected) in losses.iter().zip(expected) {
            let gradient = loss.backward()?.remove(&x).expect("there is a gradient");
            assert_eq!(values(&gradient), expected, "{dtype:?}");
        }
    }
    Ok(())
}

/// A text of 8 letters with rules: the next letter is the sum of the two before, but for every fifth.
fn letters(n: usize) -> Vec<u32> {
    let mut text = vec![1, 2];
    for i in 2..n {
        let rule = (text[i - 1] + text[i - 2]) % 8;
        text.push(if i % 5 == 0 { (i as u32 / 5) % 8 } else { rule });
    }
    text
}

/// An embedding of two letters and a linear layer, trained with one of the losses.
fn curve(loss: Loss, optimizer: &str) -> Result<Vec<f64>> {
    let text = letters(202);
    let table = Var::from_tensor(&(logits((8, 12), DType::F32, 10) * 0.2)?)?;
    let weight = Var::from_tensor(&(logits((8, 24), DType::F32, 11) * 0.2)?)?;
    let bias = Var::zeros(8, DType::F32, CPU)?;
    let variables = vec![table.clone(), weight.clone(), bias.clone()];
    let embedding = Embedding::new(table.as_tensor().clone(), 12);
    let layer = Linear::new(weight.as_tensor().clone(), Some(bias.as_tensor().clone()));
    let pairs: Vec<u32> = text.windows(3).flat_map(|w| [w[0], w[1]]).collect();
    let x = Tensor::from_vec(pairs, (200, 2), CPU)?;
    let targets = Tensor::new(&text[2..], CPU)?;
    let mut curve = vec![];
    let mut step = |f: &mut dyn FnMut(&Tensor) -> Result<()>| -> Result<()> {
        for _ in 0..60 {
            let logits = layer.forward(&embedding.forward(&x)?.flatten_from(1)?.tanh()?)?;
            let loss = loss(&logits, &targets)?;
            curve.push(value(&loss));
            f(&loss)?;
        }
        Ok(())
    };
    match optimizer {
        "sgd" => {
            let mut sgd = SGD::new(variables, 1.0)?;
            step(&mut |loss| sgd.backward_step(loss))?;
        }
        _ => {
            let params = ParamsAdamW { lr: 0.03, ..Default::default() };
            let mut adam = AdamW::new(variables, params)?;
            step(&mut |loss| adam.backward_step(loss))?;
        }
    }
    Ok(curve)
}

#[test]
fn training_has_the_same_curve() -> Result<()> {
    for optimizer in ["sgd", "adamw"] {
        let (ours, theirs) = (curve(cross_entropy, optimizer)?, curve(candle, optimizer)?);
        let (first, last) = (ours[0], ours[ours.len() - 1]);
        println!("{optimizer}: {first:.4} to {last:.4}");
        assert!(last < 0.8 * first, "{optimizer}: {first} to {last}: nothing was learnt");
        let apart = ours.iter().zip(&theirs).map(|(a, b)| (a - b).abs()).fold(0.0, f64::max);
        assert!(apart < 2e-4, "{optimizer}: {apart}");
    }
    Ok(())
}

/// From 32 MiB on its pages are touched first, and it is written past the caches.
#[test]
fn a_large_gradient_is_that_of_its_rows() -> Result<()> {
    let vocab = 50_257;
    let sum = CrossEntropy::new().reduction(Reduction::Sum);
    for (dtype, rows) in [(DType::F32, 170), (DType::BF16, 340)] {
        let x = logits((1, vocab + rows), dtype, 12).squeeze(0)?;
        // Each row is the one before, shifted by one.
        let rows: Vec<Tensor> = (0..rows).map(|i| x.narrow(0, i, vocab)).collect::<Result<_>>()?;
        let x = Tensor::stack(&rows, 0)?;
        let targets = ids(rows.len(), vocab);
        let of = |x: &Tensor, targets: &Tensor| {
            trained(x, |x| cross_entropy_with(&sum, x, targets)).map(|(_, gradient)| gradient)
        };
        let all = of(&x, &targets)?;
        assert!(rows.len() * vocab * dtype.size_in_bytes() > 32 << 20);
        for (start, len) in [(0, 1), (77, 3), (rows.len() - 1, 1)] {
            let part = of(&x.narrow(0, start, len)?, &targets.narrow(0, start, len)?)?;
            assert_eq!(values(&all.narrow(0, start, len)?), values(&part), "{dtype:?} {start}");
        }
    }
    Ok(())
}
