//! Looking at tunnels and at the machine from outside: nothing here changes either.
//!
//! - [`show`]: `adit show`, what `wg show` prints and how the packets come in.
//! - [`flows`]: `adit flows`, per-flow counters from the pinned maps.
//! - [`doctor`]: `adit doctor`, what the machine offers and what is in the way.
//! - [`answer`]: the answer to `get=1`; `client` asks for it, and `tunnel` puts it beside what the programs count.
//! - `style`: how numbers and times are written.
//!
//! `adit top` has a room of its own, [`crate::top`].

pub mod answer;
pub(crate) mod client;
pub mod doctor;
pub mod flows;
pub mod show;
pub(crate) mod style;
pub(crate) mod tunnel;
