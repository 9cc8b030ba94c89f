//! Keeping every block in as many good copies as the layout asks for.
//!
//! - [`duties`] is what a layout asks of this daemon, [`pass`] one comparison with the other holders of its blocks.
//!   Both are pure; `heal_tests` runs them on whole rings under a seeded scheduler.
//! - [`heal`] is the task that carries out passes, [`give_back`] returns copies that belong elsewhere, and [`healer`]
//!   is what both work with.
//! - [`audit`] finds blocks that files refer to and no daemon has.
//! - [`handoff`] remembers which owners a put went past, and [`heal`] sends them the block.
//! - [`read_repair`] replaces single corrupt copies, [`throttle`] limits the rate, [`progress`] is what metad learns.

pub mod audit;
pub mod duties;
pub mod give_back;
pub mod handoff;
pub mod heal;
#[cfg(test)]
mod heal_tests;
pub mod healer;
pub mod pass;
pub mod progress;
pub mod read_repair;
pub mod throttle;
