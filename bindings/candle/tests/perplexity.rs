//! What the example is made of, and the example on a model that is made here.

use crate::common::{noise, values};
use crate::evaluation::{Scored, Sums, Window, run, windows};
use crate::llama::Llama;
use candle_core::quantized::gguf_file::{self, Content, TensorInfo, Value};
use candle_core::quantized::{GgmlDType, QTensor};
use candle_core::{D, Result, Tensor};
use std::io::Cursor;
use tokenizers::pre_tokenizers::byte_level::ByteLevel;
use xent_candle::xent::CrossEntropy;

#[test]
fn each_token_is_scored_once() {
    let window = |context, scored| Window { context, scored };
    let side_by_side = windows(10, 4, 4, Scored::New);
    assert_eq!(side_by_side, [window(0..4, 1..4), window(4..8, 5..8), window(8..10, 9..10)]);
    let overlapping = windows(10, 4, 2, Scored::New);
    assert_eq!(
        overlapping,
        [window(0..4, 1..4), window(2..6, 4..6), window(4..8, 6..8), window(6..10, 8..10)]
    );
    let halves = windows(10, 4, 4, Scored::SecondHalf);
    assert_eq!(halves, [window(0..4, 3..4), window(4..8, 7..8)]);
    // Halves that overlap.
    let halves = windows(12, 6, 2, Scored::SecondHalf);
    assert_eq!(
        halves,
        [window(0..6, 4..6), window(2..8, 6..8), window(4..10, 8..10), window(6..12, 10..12)]
    );
    // A rest of one token predicts nothing.
    assert_eq!(windows(5, 4, 4, Scored::New), [window(0..4, 1..4)]);
    assert_eq!(windows(3, 8, 8, Scored::New), [window(0..3, 1..3)]);
    assert_eq!(windows(3, 8, 8, Scored::SecondHalf), []);
    assert_eq!(windows(0, 4, 4, Scored::New), []);
    assert_eq!(windows(1, 4, 4, Scored::New), []);
    for stride in 1..=7 {
        let all = |scored| -> Vec<usize> {
            let windows = windows(50, 7, stride, scored).into_iter();
            windows.flat_map(|window| window.scored).collect()
        };
        for scored in [all(Scored::New), all(Scored::SecondHalf)] {
            assert!(!scored.is_empty() && scored.is_sorted_by(|a, b| a < b), "{stride}");
        }
        assert!(stride == 7 || all(Scored::New) == (1..50).collect::<Vec<_>>(), "{stride}");
    }
}

/// As `llama-perplexity` prints it: `ppl * sqrt((E[nll^2] - E[nll]^2) / (n - 1))`.
#[test]
fn the_standard_error_is_that_of_llama_cpp() {
    let losses = [1.0, 2.0, 4.0, 0.5];
    let mut sums = Sums::default();
    losses.iter().for_each(|&loss| sums.add(loss));
    let (mean, variance) = (1.875, 21.25 / 4.0 - 1.875 * 1.875);
    assert_eq!((sums.count, sums.mean()), (4, mean));
    let expected = f64::exp(mean) * f64::sqrt(variance / 3.0);
    assert!((sums.perplexity_stderr() - expected).abs() < 1e-12);
}

const WIDTH: usize = 64;
const VOCAB: usize = 256 + 1;

/// A llama of two blocks, 4 heads with keys for 2, in a file of bytes; its tokens are the bytes and "th".
fn tiny(quantized: bool) -> Result<Vec<u8>> {
    let dtype = if quantized { GgmlDType::Q8_0 } else { GgmlDType::F32 };
    let mut tensors = vec![];
    let mut add = |name: String, shape: &[usize], around: f32| -> Result<()> {
        let len = shape.iter().product();
        let seed = 1 + tensors.len() as u64;
        let scale = 0.15;
        let numbers = noise(len, seed).iter().map(|x| around + scale * x).collect::<Vec<_>>();
        let dtype = if shape.len() == 1 { GgmlDType::F32 } else { dtype };
        let tensor =
            QTensor::quantize(&Tensor::from_vec(numbers, shape, crate::common::CPU)?, dtype)?;
        tensors.push((name, tensor));
        Ok(())
    };
    add("token_embd.weight".into(), &[VOCAB, WIDTH], 0.0)?;
    add("output_norm.weight".into(), &[WIDTH], 1.0)?;
    for block in 0..2 {
        for (name, shape, around) in [
            ("attn_norm", &[WIDTH][..], 1.0),
            ("attn_q", &[WIDTH, WIDTH], 0.0),
            ("attn_k", &[WIDTH / 2, WIDTH], 0.0),
            ("attn_v", &[WIDTH / 2, WIDTH], 0.0),
            ("attn_output", &[WIDTH, WIDTH], 0.0),
            ("ffn_norm", &[WIDTH], 1.0),
            ("ffn_gate", &[2 * WIDTH, WIDTH], 0.0),
            ("ffn_up", &[2 * WIDTH, WIDTH], 0.0),
            ("ffn_down", &[WIDTH, 2 * WIDTH], 0.0),
        ] {
            add(format!("blk.{block}.{name}.weight"), shape, around)?;
        }
    }
    let mut letters: Vec<String> = ByteLevel::alphabet().into_iter().map(String::from).collect();
    letters.sort();
    letters.push("th".into());
    let strings = |strings: &[&str]| {
        Value::Array(strings.iter().map(|&string| Value::String(string.into())).collect())
    };
    let tokens = strings(&letters.iter().map(String::as_str).collect::<Vec<_>>());
    let metadata = [
        ("general.architecture", Value::String("llama".into())),
        ("llama.attention.head_count", Value::U32(4)),
        ("llama.attention.head_count_kv", Value::U32(2)),
        ("llama.attention.layer_norm_rms_epsilon", Value::F32(1e-5)),
        ("llama.block_count", Value::U32(2)),
        ("llama.context_length", Value::U32(32)),
        ("llama.embedding_length", Value::U32(WIDTH as u32)),
        ("llama.rope.dimension_count", Value::U32(WIDTH as u32 / 4)),
        ("llama.rope.freq_base", Value::F32(1e4)),
        ("tokenizer.ggml.model", Value::String("gpt2".into())),
        ("tokenizer.ggml.pre", Value::String("smollm".into())),
        ("tokenizer.ggml.tokens", tokens),
        ("tokenizer.ggml.merges", strings(&["t h"])),
    ];
    let metadata: Vec<_> = metadata.iter().map(|(key, value)| (*key, value)).collect();
    let tensors: Vec<_> = tensors.iter().map(|(name, tensor)| (name.as_str(), tensor)).collect();
    let mut file = Cursor::new(vec![]);
    gguf_file::write(&mut file, &metadata, &tensors)?;
    Ok(file.into_inner())
}

fn read(bytes: &[u8], window: usize, dequantized: bool) -> Result<(Llama, Content)> {
    let mut reader = Cursor::new(bytes);
    let content = Content::read(&mut reader)?;
    Ok((Llama::read(&content, &mut reader, window, dequantized)?, content))
}

#[test]
fn a_tiny_model_reads_a_text() -> Result<()> {
    let (model, content) = read(&tiny(false)?, 32, false)?;
    let tokenizer = crate::llama::tokenizer(&content)?;
    let text = "the quick brown fox, the 2 lazy d\u{f6}gs: then again the path that the moth takes";
    let encoding = tokenizer.encode_fast(text, false).unwrap();
    let tokens = encoding.get_ids();
    let bytes = |id| tokenizer.id_to_token(id).unwrap().chars().count() as u64;
    assert_eq!(tokens.iter().map(|&token| bytes(token)).sum::<u64>(), text.len() as u64);
    // "th" is one token wherever it stands.
    assert_eq!(tokens.len(), text.len() - text.matches("th").count());
    assert_eq!(tokenizer.decode(tokens, false).unwrap(), text);

    for (scored, stride, bos) in [
        (Scored::New, 32, None),
        (Scored::New, 10, None),
        (Scored::New, 32, Some(7)),
        (Scored::SecondHalf, 32, None),
    ] {
        let windows = windows(tokens.len(), 32, stride, scored);
        let mut seen = 0;
        let report = run(&model, tokens, &windows, bos, bytes, |scored| seen += scored)?;
        let count = windows.iter().map(|window| window.scored.len() as u64).sum::<u64>();
        assert_eq!((seen, report.xent.count(), report.exact.count), (count, count, count));
        let exact = report.exact.mean();
        assert!((report.xent.mean() - exact).abs() < 1e-7, "{} {exact}", report.xent.mean());
        assert!((report.candle.losses.mean() - exact).abs() < 1e-5);
        assert_eq!(report.xent.correct(), Some(report.candle.correct));
        let of_exact = report.exact.perplexity_stderr();
        assert!((report.xent.perplexity_stderr() / of_exact - 1.0).abs() < 1e-5);
        assert!((report.xent.perplexity() / exact.exp() - 1.0).abs() < 1e-7);

        // And each window by itself.
        let mut sum = 0.0;
        for window in &windows {
            let mut read = tokens[window.context.clone()].to_vec();
            read[0] = bos.unwrap_or(read[0]);
            let logits = model.logits(&model.states(&read)?)?;
            let from = window.scored.start - 1 - window.context.start;
            let logits = logits.narrow(0, from, window.scored.len())?;
            let targets = Tensor::new(&tokens[window.scored.clone()], crate::common::CPU)?;
            sum += xent_candle::evaluate(&CrossEntropy::new(), &logits, &targets)?.sum();
        }
        assert!((report.xent.sum() - sum).abs() < 1e-9 * sum);
    }
    assert!(run(&model, tokens, &[], None, bytes, |_| ()).is_err());
    Ok(())
}

#[test]
fn a_position_sees_what_is_before_it() -> Result<()> {
    let (model, _) = read(&tiny(false)?, 8, false)?;
    let logits = |tokens: &[u32]| model.logits(&model.states(tokens)?);
    let all = logits(&[5, 6, 7, 8, 9, 10])?;
    assert_eq!(all.dims(), [6, VOCAB]);
    // A shorter text has the same logits, and another beginning has others.
    let close = |a: &Tensor, b: &Tensor| {
        let most = (a - b)?.abs()?.max_all()?.to_scalar::<f32>()?;
        Ok::<_, candle_core::Error>(most < 1e-4)
    };
    assert!(close(&logits(&[5, 6, 7])?, &all.narrow(0, 0, 3)?)?);
    assert!(!close(&logits(&[4, 6, 7])?.narrow(0, 2, 1)?, &all.narrow(0, 2, 1)?)?);
    // The order counts, also of tokens that are not the last.
    assert!(!close(&logits(&[6, 5, 7])?.narrow(0, 2, 1)?, &all.narrow(0, 2, 1)?)?);
    Ok(())
}

#[test]
fn quantized_weights_are_nearly_those() -> Result<()> {
    let bytes = tiny(true)?;
    let ((quantized, _), (plain, _)) = (read(&bytes, 16, false)?, read(&bytes, 16, true)?);
    let tokens: Vec<u32> = (0..16).map(|i| i * 37 % 256).collect();
    let [a, b] =
        [quantized, plain].map(|model| model.logits(&model.states(&tokens).unwrap()).unwrap());
    let (a, b) = (values(&a), values(&b));
    let apart = crate::common::relative(&a, &b);
    assert!(apart > 0.0 && apart < 0.15, "{apart}");
    Ok(())
}

#[test]
fn what_is_no_llama_is_an_error() -> Result<()> {
    let mut reader = Cursor::new(tiny(false)?);
    let content = Content::read(&mut reader)?;
    let tensors: Vec<String> = content.tensor_infos.keys().cloned().collect();
    assert_eq!(tensors.len(), 20);
    let changed = |window, change: &dyn Fn(&mut Content)| {
        let mut reader = Cursor::new(tiny(false).unwrap());
        let mut content = Content::read(&mut reader).unwrap();
        change(&mut content);
        Llama::read(&content, &mut reader, window, false).err().map(|error| error.to_string())
    };
    let with = |key: &str, value: Option<Value>| {
        let change = |content: &mut Content| {
            match &value {
                Some(value) => content.metadata.insert(key.into(), value.clone()),
                None => content.metadata.remove(key),
            };
        };
        changed(8, &change).unwrap()
    };
    let error = with("general.architecture", Some(Value::String("qwen2".into())));
    assert!(error.contains("architecture llama, not Some(\"qwen2\")"), "{error}");
    assert!(with("llama.block_count", None).contains("the file has no llama.block_count"));
    assert!(with("llama.attention.head_count", Some(Value::U32(3))).contains("3 heads"));
    assert!(with("llama.block_count", Some(Value::U32(3))).contains("blk.2"));

    // What would make other logits of it.
    assert!(with("llama.block_count", Some(Value::U32(1))).contains("9 tensors"));
    for name in ["rope_freqs.weight", "blk.0.attn_q.bias"] {
        let add = |content: &mut Content| {
            let info = content.tensor_infos.remove("output_norm.weight").unwrap();
            let again = TensorInfo { shape: info.shape.clone(), ..info };
            content.tensor_infos.insert("output_norm.weight".into(), info);
            content.tensor_infos.insert(name.into(), again);
        };
        let error = changed(8, &add).unwrap();
        assert!(error.contains("1 tensors of the file") && error.contains(name), "{error}");
    }
    for key in ["llama.rope.scaling.factor", "llama.rope.scale_linear", "llama.logit_scale"] {
        assert!(with(key, Some(Value::F32(8.0))).contains(key));
    }
    let linear = Value::String("linear".into());
    assert!(with("llama.rope.scaling.type", Some(linear)).contains("llama.rope.scaling.type"));
    let unscaled = |content: &mut Content| {
        let none = Value::String("none".into());
        content.metadata.insert("llama.rope.scaling.type".into(), none);
    };
    assert_eq!(changed(32, &unscaled), None);
    let error = changed(33, &|_| ()).unwrap();
    assert!(error.contains("33 tokens is longer than the 32"), "{error}");
    assert!(with("llama.context_length", None).contains("llama.context_length"));

    // And other tokens.
    for rules in [Some("llama-bpe"), Some("gpt-2"), Some("smaug-bpe"), None] {
        let mut content = Content::read(&mut Cursor::new(tiny(false)?))?;
        let key = "tokenizer.ggml.pre";
        match rules {
            Some(rules) => content.metadata.insert(key.into(), Value::String(rules.into())),
            None => content.metadata.remove(key),
        };
        let error = crate::llama::tokenizer(&content).unwrap_err().to_string();
        assert!(error.contains(&format!("not {rules:?}")), "{error}");
    }
    Ok(())
}

#[test]
fn accuracy_counts_the_first_of_the_largest() -> Result<()> {
    let logits = Tensor::new(&[[1f32, 1.0, 0.0], [0.0, 2.0, 2.0]], crate::common::CPU)?;
    let targets = Tensor::new(&[0u32, 2], crate::common::CPU)?;
    let ours = xent_candle::evaluate(&CrossEntropy::new(), &logits, &targets)?.correct();
    let theirs = logits.argmax(D::Minus1)?.eq(&targets)?;
    assert_eq!((ours, values(&theirs)), (Some(1), vec![1.0, 0.0]));
    Ok(())
}
