//! Kernels for all types. As those of a type they are never inlined, hence compiled in this crate.

use crate::kernel::double::compare;
use crate::kernel::logprobs::Statistics;
use crate::kernel::part::Part;
use crate::kernel::row_stats::RowStats;
use crate::simd::backend::Kernels;

/// The statistics of some classes of a row.
#[inline(never)]
pub(crate) fn row_stats(kernels: Kernels, part: &Part<'_>, out: &mut RowStats) {
    kernels.run(Statistics { part, out });
}

/// How two models differ in some rows.
#[inline(never)]
pub(crate) fn compare(kernels: Kernels, job: &mut compare::Job<'_>) {
    kernels.run(job);
}
