//! Placeholder until the store is there.
fn main() {}
