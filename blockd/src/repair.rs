//! Keeping every block in as many good copies as the layout asks for.
//!
//! - [`duties`] is what a layout asks of this daemon, [`pass`] one comparison with the other holders of its blocks.
//!   Both are pure; `heal_tests` runs them on whole rings under a seeded scheduler.
//! - [`heal`] is the task that carries out passes, [`give_back`] returns copies that belong elsewhere, and [`healer`]
//!   is what both work with.
//! - [`audit`] is the task that finds blocks that files refer to and no daemon has, [`search`] looks for them on others,
//!   [`missing`] is what was not found, and [`claims`] is who said falsely that it had something.
//! - [`handoff`] remembers which owners a put went past, and [`deliver`] sends them the block.
//! - [`read_repair`] replaces single corrupt copies and fetches those that an audit misses, which wait in [`absent`].
//! - [`throttle`] limits the rate, [`patience`] is how long a pass waits for a source, [`progress`] is what metad learns.
//! - [`probe`] and [`fetch`] are how other daemons are asked.

pub mod absent;
pub mod audit;
#[cfg(test)]
mod audit_tests;
pub mod claims;
pub mod deliver;
#[cfg(test)]
mod deliver_tests;
pub mod duties;
pub mod fetch;
pub mod give_back;
pub mod handoff;
pub mod heal;
#[cfg(test)]
mod heal_tests;
pub mod healer;
pub mod missing;
pub mod pass;
#[cfg(test)]
mod pass_tests;
pub mod patience;
pub mod probe;
pub mod progress;
pub mod read_repair;
pub mod search;
#[cfg(test)]
pub(crate) mod test_peers;
pub mod throttle;
