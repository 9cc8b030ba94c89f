//! How much work the rows do.

/// Sizes of the workloads.
#[derive(Clone, Copy)]
pub(crate) struct Scale {
    pub sequential_mib: usize,
    pub random_mib: usize,
    pub random_ops: usize,
    pub files: usize,
}

impl Scale {
    pub(crate) const FULL: Self = Self { sequential_mib: 1024, random_mib: 256, random_ops: 20_000, files: 4_000 };
    /// Small sizes, to check that the bench works.
    pub(crate) const QUICK: Self = Self { sequential_mib: 64, random_mib: 32, random_ops: 500, files: 400 };
}
