//! Keeping every block in as many good copies as the layout asks for.
//!
//! - [`duties`] is what a layout asks of this daemon, [`pass`] one comparison with those that hold the same. Both are pure;
//!   `heal_tests` runs them on whole rings under a seeded scheduler.
//! - [`heal`] is the task that carries passes out, and [`give_back`] what it does with copies that belong elsewhere;
//!   [`healer`] is what both work with.
//! - [`audit`] finds what nobody has, by what metad counts on.
//! - [`read_repair`] replaces single corrupt copies, [`throttle`] limits the rate, [`progress`] is what metad is told.

pub mod audit;
pub mod duties;
pub mod give_back;
pub mod heal;
#[cfg(test)]
mod heal_tests;
pub mod healer;
pub mod pass;
pub mod progress;
pub mod read_repair;
pub mod throttle;
