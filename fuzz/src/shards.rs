//! Statistics of shards: cut and merged in any order they say what the whole row says, and whatever bytes they
//! come from there is an answer.

use crate::input::Input;
use crate::mask::Mask;
use crate::number::{Logit, Number, keys};
use crate::oracle::distance;
use crate::question::{Asked, Question};
use std::ops::Range;
use xent::{
    AllowedTokens, Backend, LogProbs, Logits, RowStats, Sample, Sampler, Shard, TokenLogProbs,
};

/// What the shards of some rows say, on every backend. `found` is what one call found, on each.
pub fn check<T: Logit + xent::Element<Real = f32>>(
    asked: &Asked<T>,
    input: &mut Input<'_>,
    found: &[TokenLogProbs],
) {
    let is_long = asked.rows * asked.vocab > 10_000;
    let available = Backend::available().iter().copied();
    let backends = available.filter(|&b| b != Backend::Scalar || !is_long);
    let mut cuts = vec![0, asked.vocab];
    // At chunks the bits are those of the whole.
    let unit = if input.flag() { RowStats::CHUNK } else { 1 };
    for _ in 0..input.below(6) {
        cuts.push(input.below(asked.vocab.min(1 << 16) / unit + 1) * unit);
    }
    cuts.sort_unstable();
    let order: Vec<u8> = (0..cuts.len()).map(|_| input.byte()).collect();
    let mut want: Option<Vec<RowStats>> = None;
    for (backend, found) in backends.zip(found) {
        let at = |what: &str| format!("{what}, cuts {cuts:?}, {order:?}, {backend}, {asked:?}");
        let whole = stats(asked, backend, 0..asked.vocab, None);
        let parts: Vec<Range<usize>> = cuts.windows(2).map(|cut| cut[0]..cut[1]).collect();
        let first: Vec<Vec<RowStats>> =
            parts.iter().map(|part| stats(asked, backend, part.clone(), None)).collect();
        // As processes do it: the shard of a target tells its logit, then all count.
        let logit = |row: usize| first.iter().find_map(|stats| stats[row].target_logit());
        let logits: Vec<f32> = (0..asked.rows).map(|row| logit(row).unwrap_or(0.0)).collect();
        let second: Vec<Vec<RowStats>> =
            parts.iter().map(|part| stats(asked, backend, part.clone(), Some(&logits))).collect();
        for (row, whole) in whole.iter().enumerate() {
            same_as_found(asked, row, whole, found, &|| at("whole"));
        }
        let merged: Vec<RowStats> = (0..asked.rows)
            .map(|row| {
                let parts: Vec<RowStats> = second.iter().map(|stats| stats[row]).collect();
                let in_order = parts
                    .iter()
                    .fold(RowStats::default(), |all, part| all.merge(part).expect("disjoint"));
                let other = anyhow(parts, &order);
                let size = size(asked, row);
                close(&other, &in_order, size, &|| at("order"));
                close(&in_order, &whole[row], size, &|| at("whole"));
                // Beyond, and in logits that count in another `ln 2`, last digits depend on the order.
                if size < if backend.is_bit_exact() { 360_000.0 } else { 350.0 } {
                    assert!(other == in_order, "bytes, {}", at("order"));
                    if unit == RowStats::CHUNK {
                        assert!(facts(&other) == facts(&whole[row]), "{}", at("chunks"));
                    }
                }
                in_order
            })
            .collect();
        if backend.is_bit_exact() {
            let want = want.get_or_insert_with(|| merged.clone());
            for (got, want) in merged.iter().zip(want) {
                assert!(facts(got) == facts(want), "{}", at("bits"));
            }
        }
    }
}

/// The largest logit, after the temperature.
fn size<T: Logit>(asked: &Asked<T>, row: usize) -> f64 {
    let bias = if asked.question.bias.is_some() { f64::INFINITY } else { 0.0 };
    let x = asked.x[row * asked.vocab..][..asked.vocab].iter().map(|x| x.value().abs());
    let size = x.filter(|x| x.is_finite()).fold(0.0, f64::max) / asked.question.temperature;
    size.max(bias)
}

fn stats<T: Logit + xent::Element<Real = f32>>(
    asked: &Asked<T>,
    backend: Backend,
    part: Range<usize>,
    target_logits: Option<&[f32]>,
) -> Vec<RowStats> {
    let Asked { rows, vocab, question, x } = asked;
    let len = part.len();
    let here: Vec<T> =
        (0..*rows).flat_map(|row| &x[row * vocab..][..*vocab][part.clone()]).copied().collect();
    let bias = question.bias.as_ref().map(|bias| bias.part(*rows, part.start, len));
    let words = question.mask.as_ref().map(|mask| mask.part(*rows, part.clone()));
    let local = Question { bias, mask: None, candidates: None, ..question.clone() };
    let mut ask: LogProbs<'_> = local.ask(backend);
    if let Some(words) = &words {
        ask = ask.allowed_tokens(AllowedTokens::new(words));
    }
    let mut shard = Shard::new(part.start, *vocab);
    if let Some(logits) = target_logits {
        shard = shard.target_logits(logits);
    }
    let mut stats = vec![RowStats::default(); *rows];
    let logits = Logits::new(&here, *rows, len).expect("as many as there must be");
    ask.row_stats(logits, shard, &mut stats).expect("a part of what is valid");
    for one in &mut stats {
        let again = RowStats::from_bytes(&one.to_bytes()).expect("it has been written");
        assert!(again == *one && facts(&again) == facts(one), "{one:?}");
        *one = again;
    }
    stats
}

/// Merges any two until one is left.
fn anyhow(mut parts: Vec<RowStats>, order: &[u8]) -> RowStats {
    for pair in order.chunks(2).cycle().take(1000) {
        if parts.len() <= 1 {
            break;
        }
        let a = parts.swap_remove(usize::from(pair[0]) % parts.len());
        let at = usize::from(pair[pair.len() - 1]) % parts.len();
        let merged = if pair[0] & 128 == 0 { parts[at].merge(&a) } else { a.merge(&parts[at]) };
        parts[at] = merged.expect("they have no classes in common");
    }
    parts.pop().unwrap_or_default()
}

fn key(x: f64) -> u64 {
    x.key()
}

/// Everything there is to ask.
fn facts(stats: &RowStats) -> Vec<(&'static str, Vec<u64>)> {
    let number = |x: Option<f64>| x.map(key).into_iter().collect::<Vec<_>>();
    let id = |x: Option<u32>| x.map(u64::from).into_iter().collect::<Vec<_>>();
    let top: Vec<_> = stats.top_k().collect();
    let saved = stats.saved();
    vec![
        ("target logit", stats.target_logit().map(|x| x.key()).into_iter().collect()),
        ("rank", stats.rank().into_iter().collect()),
        ("strict rank", stats.strict_rank().into_iter().collect()),
        ("argmax", id(stats.argmax())),
        ("sampled", id(stats.sampled())),
        ("top ids", top.iter().map(|top| top.id.into()).collect()),
        ("top logits", top.iter().map(|top| top.logit.key()).collect()),
        ("top logprobs", top.iter().map(|top| key(top.logprob.into())).collect()),
        ("loss", number(stats.loss())),
        ("logprob", number(stats.logprob())),
        ("logsumexp", number(Some(stats.logsumexp()))),
        ("saved", keys(&[saved.hi, saved.lo])),
        ("logprob of", [1.5, f32::NEG_INFINITY, f32::MAX].map(|z| key(stats.logprob_of(z))).into()),
        ("entropy", number(stats.entropy())),
        ("varentropy", number(stats.varentropy())),
    ]
}

/// How many of these are the same in any order; the others within 1 ULP of `f32`.
const EXACT: usize = 7;

fn close(got: &RowStats, want: &RowStats, size: f64, at: &dyn Fn() -> String) {
    // What cancels in a variance, as moments are kept around 0 up to logits of 363,000.
    let square = want.varentropy().unwrap_or(0.0) + want.entropy().unwrap_or(0.0).powi(2);
    let off = size.min(4e5).powi(2) * 2f64.powi(-50) + square * 2f64.powi(-20);
    for (i, ((name, got), (_, want))) in facts(got).into_iter().zip(facts(want)).enumerate() {
        assert_eq!(got.len(), want.len(), "{name}, {}", at());
        if i < EXACT {
            assert!(got == want, "{name}: {got:x?} and {want:x?}, {}", at());
            continue;
        }
        for (&a, &b) in got.iter().zip(&want) {
            let (a, b) = (f64::from_bits(a), f64::from_bits(b));
            let near = distance(a as f32, b as f32) <= 1
                // What is 0 but for rounding, and what rounding took from `saved.hi`.
                || name == "logsumexp" && (a - b).abs() <= 1e-12
                || name == "saved"
                || name == "varentropy" && (a - b).abs() <= off;
            assert!(near, "{name}: {a:e} and {b:e}, {}", at());
        }
    }
}

/// A whole row's statistics, rounded, are what one call finds.
fn same_as_found<T: Logit>(
    asked: &Asked<T>,
    row: usize,
    stats: &RowStats,
    found: &TokenLogProbs,
    at: &dyn Fn() -> String,
) {
    let targets = asked.question.targets(asked.rows);
    if targets.is_some_and(|targets| targets[row].is_none()) {
        assert!(*stats == RowStats::default(), "{}", at());
        return;
    }
    let number = |name: &str, got: Option<f64>, want: &[f32]| {
        if let (Some(got), Some(&want)) = (got, want.get(row)) {
            // Rounded to 0 rather than to -0.
            let got = got as f32 + 0.0;
            assert_eq!(got.key(), (want + 0.0).key(), "{name}: {got:e} and {want:e}, {}", at());
        }
        assert!(got.is_some() || want.is_empty(), "{name}, {}", at());
    };
    number("logprob", stats.logprob(), &found.logprobs);
    number("logsumexp", Some(stats.logsumexp()), &found.logsumexp);
    number("entropy", stats.entropy(), &found.entropy);
    number("varentropy", stats.varentropy(), &found.varentropy);
    let rank = |rank: Option<u64>| rank.map(|rank| rank as i64);
    if let (Some(&ge), Some(&gt)) = (found.ranks.get(row), found.strict_ranks.get(row)) {
        let got = (rank(stats.rank()), rank(stats.strict_rank()));
        assert_eq!(got, (Some(ge), Some(gt)), "{}", at());
    }
    assert_eq!(stats.argmax().map_or(-1, i64::from), found.argmax[row], "{}", at());
    if let Some(&id) = found.sampled.get(row) {
        assert_eq!(stats.sampled().map_or(-1, i64::from), id, "{}", at());
    }
    let top: Vec<_> = stats.top_k().map(|top| (top.id.into(), top.logprob.key())).collect();
    let want: Vec<_> = found.top(row).map(|(id, logprob)| (id, logprob.key())).collect();
    assert!(top == want, "{top:?} and {want:?}, {}", at());
}

/// Statistics made of any bytes, merged, and asked everything.
pub fn any_bytes(input: &mut Input<'_>) {
    let mut all = vec![RowStats::default()];
    for _ in 0..1 + input.below(4) {
        let mut bytes = base(input).to_bytes();
        if input.one_in(8) {
            bytes.fill_with(|| input.byte());
        }
        for _ in 0..input.below(24) {
            let at = input.below(bytes.len());
            // Numbers have 4, 8 or 16 bytes; of bytes alone few are changed to something that passes.
            let len = input.pick(&[1, 4, 8, 16]).min(bytes.len() - at);
            let value = match input.byte() % 4 {
                0 => (input.number() as f32).to_bits().into(),
                1 => input.number().to_bits(),
                2 => input.below(300) as u64,
                _ => input.long(),
            };
            let value = (i128::from(value as i64) << (input.byte() % 120)).to_le_bytes();
            bytes[at..][..len].copy_from_slice(&value[..len]);
        }
        if let Ok(stats) = RowStats::from_bytes(&bytes) {
            let again = RowStats::from_bytes(&stats.to_bytes()).expect("it has been written");
            assert!(again == stats && facts(&again) == facts(&stats));
            all.push(stats);
        }
    }
    for _ in 0..4 {
        let (a, b) = (input.below(all.len()), input.below(all.len()));
        assert_eq!(all[a].merge(&all[b]).is_ok(), all[b].merge(&all[a]).is_ok());
        let Ok(merged) = all[a].merge(&all[b]) else { continue };
        let sampler = Sampler::new().top_k(3).top_p(0.5).min_p(0.1);
        let _ = sampler.draw_row(&merged, input.below(9), Sample::new(1, 2));
        facts(&merged);
        let again = RowStats::from_bytes(&merged.to_bytes());
        // Counts and sums may be too large after that.
        assert!(again.is_err() || again == Ok(merged));
        all.push(merged);
    }
}

/// Of a row of a few numbers.
fn base(input: &mut Input<'_>) -> RowStats {
    let vocab = 1 + input.below(9);
    let x: Vec<f32> = input.row(vocab);
    let (target, samples) = ([input.below(vocab)], [xent::Sample::new(1, 2)]);
    let mut ask = LogProbs::new().top_k(input.below(vocab.min(5) + 1));
    let wanted = input.byte();
    if wanted & 1 == 1 {
        ask = ask.targets(&target).ranks(true);
    }
    if wanted & 2 == 2 {
        ask = ask.sample(&samples);
    }
    ask = ask.entropy(wanted & 4 == 4).varentropy(wanted & 8 == 8);
    // At the end of all ids; targets are of the whole vocabulary, hence elsewhere.
    let whole = u32::MAX as usize - 1;
    let first = if wanted & 16 == 16 { whole - 20 } else { 16 * input.below(8) };
    let mut stats = [RowStats::default()];
    let x = Logits::new(&x, 1, vocab).expect("one row");
    ask.row_stats(x, Shard::new(first, whole), &mut stats).expect("nothing is wrong");
    stats[0]
}

impl Mask {
    /// The words of some classes, contiguous.
    fn part(&self, rows: usize, part: Range<usize>) -> Vec<u32> {
        let words = part.len().div_ceil(32);
        let mut own = vec![0; rows * words];
        for row in 0..rows {
            for (i, class) in part.clone().enumerate() {
                own[row * words + i / 32] |= u32::from(self.is_allowed(row, class)) << (i % 32);
            }
        }
        own
    }
}
