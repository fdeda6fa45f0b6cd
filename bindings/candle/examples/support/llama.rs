//! A llama in a GGUF file, with the logits of all positions.
//!
//! Those of candle-transformers return the logits of the last position, which is what generating takes; perplexity takes
//! all of them. So this is a forward pass of its own, of the operations that candle has for it. It has no cache, as each
//! window is read once.
//!
//! What it does not know is an error: another tokenizer, scaled angles, and tensors that it would not read. Else the
//! perplexity would be a number, and wrong.

use candle_core::quantized::gguf_file::{Content, Value};
use candle_core::quantized::tokenizer::TokenizerFromGguf;
use candle_core::quantized::{QMatMul, QTensor};
use candle_core::{Device, Module, Result, Tensor, bail};
use candle_nn::ops::{rms_norm, silu, softmax_last_dim};
use candle_nn::rotary_emb::rope_i;
use std::collections::BTreeSet;
use std::io::{Read, Seek};
use std::sync::Arc;
use tokenizers::Tokenizer;
use tokenizers::pre_tokenizers::byte_level::ByteLevel;
use tokenizers::pre_tokenizers::digits::Digits;
use tokenizers::pre_tokenizers::sequence::Sequence;

/// Weights stay as they are in the file, and activations are quantized for each product, as llama.cpp does; or all is
/// f32.
pub(crate) struct Llama {
    embeddings: Tensor,
    blocks: Vec<Block>,
    norm: Norm,
    output: QMatMul,
    /// `[positions, head size / 2]`, for as many positions as a window has.
    rope: (Tensor, Tensor),
}

struct Block {
    attention_norm: Norm,
    query: QMatMul,
    key: QMatMul,
    value: QMatMul,
    attention_output: QMatMul,
    heads: usize,
    key_heads: usize,
    mlp_norm: Norm,
    gate: QMatMul,
    up: QMatMul,
    down: QMatMul,
}

struct Norm {
    weight: Tensor,
    epsilon: f32,
}

impl Norm {
    fn forward(&self, x: &Tensor) -> Result<Tensor> {
        rms_norm(x, &self.weight, self.epsilon)
    }
}

/// A number of the file that is an unsigned integer.
fn number(file: &Content, key: &str) -> Result<usize> {
    match file.metadata.get(key) {
        Some(value) => Ok(value.to_u32()? as usize),
        None => bail!("the file has no {key}"),
    }
}

impl Llama {
    /// For windows of at most so many positions. `dequantized`: all weights in f32.
    pub(crate) fn read(
        file: &Content,
        reader: &mut (impl Read + Seek),
        window: usize,
        dequantized: bool,
    ) -> Result<Self> {
        let architecture = file.metadata.get("general.architecture").map(Value::to_string);
        match architecture.transpose()?.map(String::as_str) {
            Some("llama") => {}
            other => bail!("this reads models of the architecture llama, not {other:?}"),
        }
        let heads = number(file, "llama.attention.head_count")?;
        let key_heads = number(file, "llama.attention.head_count_kv")?;
        let rotated = number(file, "llama.rope.dimension_count")?;
        let width = number(file, "llama.embedding_length")?;
        if heads == 0 || key_heads == 0 || heads % key_heads != 0 || rotated * heads != width {
            bail!(
                "{heads} heads, {key_heads} of keys, {rotated} rotated dimensions of {width} do not go together"
            )
        }
        let base = match file.metadata.get("llama.rope.freq_base") {
            Some(base) => base.to_f32()?,
            None => 10_000.0,
        };
        let epsilon = match file.metadata.get("llama.attention.layer_norm_rms_epsilon") {
            Some(epsilon) => epsilon.to_f32()?,
            None => bail!("the file has no llama.attention.layer_norm_rms_epsilon"),
        };

        let known = number(file, "llama.context_length")?;
        if window > known {
            bail!(
                "a window of {window} tokens is longer than the {known} that the model was made for"
            )
        }
        for (key, value) in &file.metadata {
            let none = matches!(value, Value::String(value) if value == "none");
            if key.starts_with("llama.") && key.contains("scal") && !none {
                bail!("this reads models without scaling, and the file has {key}")
            }
        }

        let device = &Device::Cpu;
        let mut unread: BTreeSet<&str> = file.tensor_infos.keys().map(String::as_str).collect();
        let mut tensor = |name: &str| {
            unread.remove(name);
            file.tensor(reader, name, device)
        };
        let product = |tensor: QTensor| -> Result<QMatMul> {
            match dequantized {
                true => Ok(QMatMul::Tensor(tensor.dequantize(device)?)),
                false => QMatMul::from_arc(Arc::new(tensor)),
            }
        };
        let norm = |tensor: QTensor| -> Result<Norm> {
            Ok(Norm { weight: tensor.dequantize(device)?, epsilon })
        };

        let embeddings = tensor("token_embd.weight")?;
        let mut blocks = vec![];
        for i in 0..number(file, "llama.block_count")? {
            let mut part = |name: &str| tensor(&format!("blk.{i}.{name}.weight"));
            blocks.push(Block {
                attention_norm: norm(part("attn_norm")?)?,
                query: product(part("attn_q")?)?,
                key: product(part("attn_k")?)?,
                value: product(part("attn_v")?)?,
                attention_output: product(part("attn_output")?)?,
                heads,
                key_heads,
                mlp_norm: norm(part("ffn_norm")?)?,
                gate: product(part("ffn_gate")?)?,
                up: product(part("ffn_up")?)?,
                down: product(part("ffn_down")?)?,
            });
        }
        let last_norm = norm(tensor("output_norm.weight")?)?;
        let dequantized_embeddings = embeddings.dequantize(device)?;
        // Small models use the embeddings twice.
        let output = match file.tensor_infos.contains_key("output.weight") {
            true => product(tensor("output.weight")?)?,
            false => product(embeddings)?,
        };
        // Biases, experts, factors of the angles.
        if let Some(name) = unread.first() {
            let n = unread.len();
            bail!("{n} tensors of the file are none that this model has a use for, such as {name}")
        }
        Ok(Llama {
            embeddings: dequantized_embeddings,
            blocks,
            norm: last_norm,
            output,
            rope: rope(window, rotated, base)?,
        })
    }

    /// The state after the last block, `[positions, width]`.
    pub(crate) fn states(&self, tokens: &[u32]) -> Result<Tensor> {
        let mask = causal_mask(tokens.len())?;
        let mut x = self.embeddings.index_select(&Tensor::new(tokens, &Device::Cpu)?, 0)?;
        for block in &self.blocks {
            x = (&x + block.attention(&block.attention_norm.forward(&x)?, &mask, &self.rope)?)?;
            x = (&x + block.mlp(&block.mlp_norm.forward(&x)?)?)?;
        }
        Ok(x)
    }

    /// `[positions, vocab]`, of states or some of them.
    pub(crate) fn logits(&self, states: &Tensor) -> Result<Tensor> {
        self.output.forward(&self.norm.forward(&states.contiguous()?)?)
    }
}

impl Block {
    fn attention(&self, x: &Tensor, mask: &Tensor, rope: &(Tensor, Tensor)) -> Result<Tensor> {
        let (positions, _) = x.dims2()?;
        // [1, heads, positions, head size]
        let split =
            |x: Tensor, heads| x.reshape((1, positions, heads, ()))?.transpose(1, 2)?.contiguous();
        let rotated = |x| rope_i(&x, &rope.0, &rope.1);
        let query = rotated(split(self.query.forward(x)?, self.heads)?)?;
        let key = rotated(split(self.key.forward(x)?, self.key_heads)?)?;
        let value = split(self.value.forward(x)?, self.key_heads)?;

        // Heads that share their keys are one product.
        let (_, _, _, size) = query.dims4()?;
        let query = query.reshape((self.key_heads, (), size))?;
        let scores = query.matmul(&key.squeeze(0)?.t()?)?;
        let scores = (scores / (size as f64).sqrt())?;
        let scores = scores.reshape((self.heads, positions, positions))?.broadcast_add(mask)?;
        let weights = softmax_last_dim(&scores)?.reshape((self.key_heads, (), positions))?;
        let mixed = weights.matmul(&value.squeeze(0)?)?.reshape((self.heads, positions, size))?;
        self.attention_output.forward(&mixed.transpose(0, 1)?.contiguous()?.flatten_from(1)?)
    }

    fn mlp(&self, x: &Tensor) -> Result<Tensor> {
        let gate = silu(&self.gate.forward(x)?)?;
        self.down.forward(&(gate * self.up.forward(x)?)?)
    }
}

/// Cosines and sines of the angles by which a position turns each pair of dimensions.
fn rope(positions: usize, rotated: usize, base: f32) -> Result<(Tensor, Tensor)> {
    let half = rotated / 2;
    let angle = |i: usize| {
        let (position, pair) = (i / half, i % half);
        position as f64 * f64::from(base).powf(-2.0 * pair as f64 / rotated as f64)
    };
    let table = |f: fn(f64) -> f64| {
        let values = (0..positions * half).map(|i| f(angle(i)) as f32).collect::<Vec<_>>();
        Tensor::from_vec(values, (positions, half), &Device::Cpu)
    };
    Ok((table(f64::cos)?, table(f64::sin)?))
}

/// -inf for what comes later.
fn causal_mask(positions: usize) -> Result<Tensor> {
    let value = |i| if i % positions > i / positions { f32::NEG_INFINITY } else { 0.0 };
    let mask = (0..positions * positions).map(value).collect::<Vec<_>>();
    Tensor::from_vec(mask, (positions, positions), &Device::Cpu)
}

/// The tokenizer that is in the file, if it splits texts as SmolLM's does.
pub(crate) fn tokenizer(file: &Content) -> Result<Tokenizer> {
    // For what it does not know candle takes GPT-2's rules, with a space before the text, and would not say so.
    let rules = file.metadata.get("tokenizer.ggml.pre").map(Value::to_string).transpose()?;
    match rules.map(String::as_str) {
        Some("smollm") => {}
        other => bail!("this splits texts by the rules smollm (tokenizer.ggml.pre), not {other:?}"),
    }
    let mut tokenizer = Tokenizer::from_gguf(file)?;
    // Each digit is a token, and no space is put before a text.
    let bytes = ByteLevel::new(false, true, true);
    let parts = vec![Digits::new(true).into(), bytes.into()];
    tokenizer.with_pre_tokenizer(Some(Sequence::new(parts)));
    Ok(tokenizer)
}
