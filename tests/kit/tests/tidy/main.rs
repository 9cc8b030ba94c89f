//! The sources' own rules: who may depend on whom, where each foreign library stands, how long a file may be, and that
//! every invariant has a line that holds it and a test that guards it.
//!
//! What breaks a rule for now stands on a list beside it. A list only gets shorter: an exception that is not needed any
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
