//! What a step of a trainer with a sharded vocabulary takes, with `xent` and with three all-reduces:
//!
//! ```text
//! cargo build --release -p xent-mpi --example vocab_parallel
//! mpirun -n 4 target/release/examples/vocab_parallel
//! ```
//!
//! Each rank has some columns of random logits. "Three all-reduces" is what Megatron-LM does: of the maximum, of the
//! target's logit, of the sum of exponentials, with passes over the logits before each. Both losses and gradients are
//! compared. Times are medians, the two ways in turn, from one barrier to the next.

use clap::Parser;
use mpi::collective::SystemOperation;
use mpi::topology::SimpleCommunicator;
use mpi::traits::*;
use std::time::{Duration, Instant};
use xent::{CrossEntropy, Evaluation, Gradient, Logits, LogitsMut, LossStats};
use xent_mpi::{VocabParallel, chunks, even};

/// Cross-entropy of a vocabulary that is sharded over MPI processes.
#[derive(Parser)]
struct Args {
    /// Tokens of a batch.
    #[arg(long, default_value_t = 256)]
    rows: usize,
    /// Classes of the whole vocabulary.
    #[arg(long, default_value_t = 151_936)]
    vocab: usize,
    /// Shards begin at multiples of 32,768 classes, for the bits of one process.
    #[arg(long)]
    chunks: bool,
    /// How often each way is timed.
    #[arg(long, default_value_t = 15)]
    rounds: usize,
    /// Seconds to wait for a rank that does not answer.
    #[arg(long, default_value_t = 60)]
    timeout: u64,
}

/// What a rank has of a batch.
struct Shard<'a> {
    world: &'a SimpleCommunicator,
    parallel: VocabParallel<'a, SimpleCommunicator>,
    x: Vec<f32>,
    targets: Vec<i64>,
    /// The gradients of both ways.
    g: [Vec<f32>; 2],
}

impl Shard<'_> {
    fn xent(&mut self) -> Result<Evaluation, Box<dyn std::error::Error>> {
        let (rows, classes) = (self.targets.len(), self.parallel.classes().len());
        let gradient = Gradient::new(LogitsMut::new(&mut self.g[0], rows, classes)?);
        let logits = Logits::new(&self.x, rows, classes)?;
        Ok(self.parallel.forward_backward(&CrossEntropy::new(), logits, &self.targets, gradient)?)
    }

    /// In `f32`, as Megatron-LM, in plain loops.
    fn three_all_reduces(&mut self) -> f64 {
        let (rows, range) = (self.targets.len(), self.parallel.classes());
        let row = |i: usize| &self.x[i * range.len()..][..range.len()];
        let local: Vec<f32> =
            (0..rows).map(|i| row(i).iter().copied().fold(f32::NEG_INFINITY, f32::max)).collect();
        let mut max = vec![0.0_f32; rows];
        self.world.all_reduce_into(&local[..], &mut max[..], SystemOperation::max());
        let own = |i: usize| (self.targets[i] as usize).checked_sub(range.start);
        let own = |i: usize| own(i).filter(|&class| class < range.len());
        let local: Vec<f32> =
            (0..rows).map(|i| own(i).map_or(0.0, |class| row(i)[class] - max[i])).collect();
        let mut at_target = vec![0.0_f32; rows];
        self.world.all_reduce_into(&local[..], &mut at_target[..], SystemOperation::sum());
        let mut local = vec![0.0_f32; rows];
        let g = self.g[1].chunks_mut(range.len().max(1));
        for ((i, g), local) in g.enumerate().zip(&mut local) {
            for (g, &x) in g.iter_mut().zip(row(i)) {
                *g = (x - max[i]).exp();
                *local += *g;
            }
        }
        let mut sum = vec![0.0_f32; rows];
        self.world.all_reduce_into(&local[..], &mut sum[..], SystemOperation::sum());
        let g = self.g[1].chunks_mut(range.len().max(1));
        for (i, g) in g.enumerate() {
            let factor = 1.0 / (sum[i] * rows as f32);
            g.iter_mut().for_each(|g| *g *= factor);
            if let Some(class) = own(i) {
                g[class] -= 1.0 / rows as f32;
            }
        }
        (0..rows).map(|i| f64::from(sum[i].ln() - at_target[i])).sum::<f64>() / rows as f64
    }

    fn timed<R>(&mut self, f: impl FnOnce(&mut Self) -> R) -> (Duration, R) {
        self.world.barrier();
        let start = Instant::now();
        let result = f(self);
        self.world.barrier();
        (start.elapsed(), result)
    }
}

fn median(mut times: Vec<Duration>) -> Duration {
    times.sort_unstable();
    times[times.len() / 2]
}

fn run(world: &SimpleCommunicator, args: &Args) -> Result<(), Box<dyn std::error::Error>> {
    let (rank, ranks) = (world.rank() as usize, world.size() as usize);
    let split = if args.chunks { chunks } else { even };
    let classes = split(args.vocab, rank, ranks);
    let mut state = 0x9e37_79b9_u64 + rank as u64;
    let mut next = || {
        state =
            state.wrapping_mul(6_364_136_223_846_793_005).wrapping_add(1_442_695_040_888_963_407);
        (state >> 40) as f32 / (1 << 24) as f32 * 20.0 - 10.0
    };
    let elements = args.rows * classes.len();
    let timeout = Duration::from_secs(args.timeout);
    let mut shard = Shard {
        world,
        parallel: VocabParallel::new(world, classes.clone(), args.vocab).timeout(timeout),
        x: (0..elements).map(|_| next()).collect(),
        targets: (0..args.rows).map(|row| (row * 7919 % args.vocab) as i64).collect(),
        g: [vec![0.0; elements], vec![0.0; elements]],
    };
    let (mut ours, mut theirs) = (Vec::new(), Vec::new());
    for _ in 0..args.rounds.max(1) {
        let (time, evaluation) = shard.timed(Shard::xent);
        let evaluation = evaluation?;
        ours.push(time);
        let (time, loss) = shard.timed(Shard::three_all_reduces);
        theirs.push(time);
        let apart = (evaluation.loss() - loss).abs();
        // Of plain sums in `f32`.
        if apart.is_nan() || apart > 1e-4 * loss {
            return Err(format!("losses {} and {loss}", evaluation.loss()).into());
        }
        let mut pairs = shard.g[0].iter().zip(&shard.g[1]);
        let is_near = |a: f32, b: f32| (a - b).abs() <= 1e-6;
        if let Some((a, b)) = pairs.find(|(a, b)| !is_near(**a, **b)) {
            return Err(format!("gradients {a:e} and {b:e}").into());
        }
        if ours.len() == 1 && rank == 0 {
            println!(
                "{ranks} ranks, {} rows, {} classes of which rank 0 has {classes:?}",
                args.rows, args.vocab
            );
            println!("loss {:.7}, of three all-reduces {loss:.7}", evaluation.loss());
            println!("exchanged by each rank: {} bytes", args.rows * LossStats::BYTES);
        }
    }
    let (ours, theirs) = (median(ours), median(theirs));
    if rank == 0 {
        let ratio = theirs.as_secs_f64() / ours.as_secs_f64();
        println!(
            "forward and backward, medians of {}: xent {ours:.2?}, three all-reduces {theirs:.2?}, {ratio:.2} times",
            args.rounds
        );
    }
    Ok(())
}

fn main() {
    let args = Args::parse();
    let threading = mpi::Threading::Funneled;
    let (universe, _) = mpi::initialize_with_threading(threading).expect("the first time");
    let world = universe.world();
    if let Err(error) = run(&world, &args) {
        eprintln!("rank {}: {error}", world.rank());
        // Not an ordinary end: it would wait for ranks that may have died.
        world.abort(1);
    }
}
