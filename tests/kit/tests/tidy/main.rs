//! House rules for the sources: which crate may depend on which, where each library of others may be used, how long a
//! file may be, and that every invariant has a line that holds it and a test that guards it.
//!
//! Each rule has a list of present exceptions beside it. A list only gets shorter: an exception that is not needed any
//! more fails its test, too.

mod circles;
mod dependencies;
mod graph;
mod layers;
mod rooms;
mod sources;
mod tasks;
mod texts;
mod unsafety;
