//! Keeping every block in as many good copies as the layout asks for.

pub mod read_repair;
