//! What a call through the C ABI costs more than one from Rust: `cargo bench -p xent-c`.
//!
//! Three ways in turn: the Rust API; the C functions linked statically, whose kernels are the very same code; and those of the
//! shared library of this build, as engines load it, whose kernels are at other addresses. The medians of many rounds, and of the
//! differences in a round, are printed. All on one thread, so that no pool is woken.
#![allow(unsafe_code, reason = "calls functions of the C ABI")]

use libloading::{Library, Symbol};
use std::hint::black_box;
use std::ptr::{null, null_mut};
use std::time::Instant;
use xent::{CrossEntropy, LogProbs, Logits, TokenOutputs, on_calling_thread};
use xent_c::*;

type Forward =
    unsafe extern "C" fn(*const xent_options, *const xent_matrix, *const xent_ids, *mut f64) -> i32;
type Tokens = unsafe extern "C" fn(*const xent_options, *const xent_token_call) -> i32;
type New = unsafe extern "C" fn(*mut *mut xent_options) -> i32;
type Threads = unsafe extern "C" fn(*mut xent_options, usize) -> i32;

const ROUNDS: usize = 401;

/// Nanoseconds of a call, of `calls` in turn.
fn time(calls: usize, f: &mut dyn FnMut()) -> f64 {
    let start = Instant::now();
    for _ in 0..calls {
        f();
    }
    start.elapsed().as_secs_f64() * 1e9 / calls as f64
}

fn median(mut values: Vec<f64>) -> f64 {
    values.sort_by(f64::total_cmp);
    values[values.len() / 2]
}

/// All in turn, each of them first as often as the others. `c` calls the static functions, or the shared ones.
fn race(what: &str, rows: usize, classes: usize, rust: &mut dyn FnMut(), c: &mut dyn FnMut(bool)) {
    let calls = (2_000_000 / (rows * classes + 400)).clamp(1, 2000);
    let mut times = [const { Vec::new() }; 3];
    for round in 0..ROUNDS {
        for i in 0..3 {
            let which = (round + i) % 3;
            times[which].push(match which {
                0 => time(calls, rust),
                _ => time(calls, &mut || c(which == 2)),
            });
        }
    }
    let more = |which: usize| {
        median(times[which].iter().zip(&times[0]).map(|(c, rust)| c - rust).collect())
    };
    let (linked, shared) = (more(1), more(2));
    let [rust, ..] = times;
    println!("| {what}, {rows} x {classes} | {:.0} | {linked:+.0} | {shared:+.0} |", median(rust));
}

fn main() {
    let exe = std::env::current_exe().expect("a program knows where it is");
    let file = exe.with_file_name(libloading::library_filename("xent_c"));
    // SAFETY: the library of this build, whose initialisers are those of the C library.
    let library = unsafe { Library::new(&file) }.expect("the shared library of this build");
    // SAFETY: these are their types in C.
    let (forward, tokens, new, threads): (
        Symbol<'_, Forward>,
        Symbol<'_, Tokens>,
        Symbol<'_, New>,
        Symbol<'_, Threads>,
    ) = unsafe {
        (
            library.get(b"xent_forward").expect("xent_forward"),
            library.get(b"xent_tokens").expect("xent_tokens"),
            library.get(b"xent_options_new").expect("xent_options_new"),
            library.get(b"xent_options_set_threads").expect("xent_options_set_threads"),
        )
    };
    let mut options = null_mut();
    let mut static_options = null_mut();
    // SAFETY: as the header asks for. Options belong to the library that made them.
    unsafe {
        assert_eq!(new(&mut options), 0);
        assert_eq!(threads(options, 1), 0);
        assert_eq!(xent_options_new(&mut static_options) as i32, 0);
        assert_eq!(xent_options_set_threads(static_options, 1) as i32, 0);
    }
    let of_static = static_options.cast_const();
    println!(
        "| {ROUNDS} rounds in turn | Rust, ns | C, static, ns more | C, shared, ns more |\n|---|---|---|---|"
    );
    for (rows, classes) in [(1, 32), (1, 1000), (1, 50_257), (8, 32), (16, 50_257)] {
        let x: Vec<f32> = (0..rows * classes).map(|i| ((i * 7919) % 4093) as f32 / 512.0).collect();
        let targets: Vec<i32> = (0..rows as i32).collect();
        let ce = CrossEntropy::new();
        let matrix = xent_matrix {
            data: x.as_ptr().cast(),
            rows,
            classes,
            row_stride: 0,
            class_stride: 0,
            dtype: 1,
            reserved: 0,
        };
        let ids = xent_ids {
            data: targets.as_ptr().cast(),
            len: rows,
            stride: 0,
            sequence: 0,
            shift: 0,
            dtype: 1,
            reserved: 0,
        };
        let ways =
            [("loss", options.cast_const(), of_static), ("loss, default options", null(), null())];
        for (what, options, of_static) in ways {
            if options.is_null() && rows * classes > 65_536 {
                continue; // would use threads
            }
            race(
                what,
                rows,
                classes,
                &mut || {
                    let logits = Logits::new(black_box(&x), rows, classes).unwrap();
                    let loss = on_calling_thread(|| ce.forward(logits, black_box(&targets)));
                    black_box(loss.unwrap());
                },
                &mut |shared| {
                    let mut loss = 0.0;
                    let (matrix, ids) = (black_box(&matrix), black_box(&ids));
                    // SAFETY: as the header asks for.
                    let status = unsafe {
                        match shared {
                            true => forward(options, matrix, ids, &mut loss),
                            false => xent_forward(of_static, matrix, ids, &mut loss) as i32,
                        }
                    };
                    assert_eq!(status, 0);
                    black_box(loss);
                },
            );
        }
        let (mut logprobs, mut c_logprobs) = (vec![0.0f32; rows], vec![0.0f32; rows]);
        let (mut ranks, mut c_ranks) = (vec![0i64; rows], vec![0i64; rows]);
        // SAFETY: a structure of numbers and pointers.
        let mut call: xent_token_call = unsafe { std::mem::zeroed() };
        call.size = size_of::<xent_token_call>();
        call.logits = matrix;
        call.targets = ids;
        call.out_len = rows;
        call.out_dtype = 1;
        call.logprobs = c_logprobs.as_mut_ptr().cast();
        call.ranks = c_ranks.as_mut_ptr();
        race(
            "log-probability and rank",
            rows,
            classes,
            &mut || {
                let logits = Logits::new(black_box(&x), rows, classes).unwrap();
                let out = TokenOutputs::new().logprobs(&mut logprobs).ranks(&mut ranks);
                let ask = LogProbs::new().targets(black_box(&targets));
                on_calling_thread(|| ask.run(logits, out)).unwrap();
            },
            &mut |shared| {
                // SAFETY: as the header asks for.
                let status = unsafe {
                    match shared {
                        true => tokens(options, black_box(&call)),
                        false => xent_tokens(of_static, black_box(&call)) as i32,
                    }
                };
                assert_eq!(status, 0);
            },
        );
        assert_eq!(black_box(c_logprobs), logprobs);
    }
}
