//! Ways into the parsers of outside bytes that nothing outside of this crate needs, for the fuzz targets of `tests/fuzz`.
//!
//! Each takes any bytes, panics if what it finds is wrong, and says in a word or two how far it came: what says something new is
//! worth to be changed further.

pub use crate::access::fuzz as access;
pub use crate::cache::embedded::fuzz as cache;
pub use crate::index::fuzz as lists;
pub use crate::journal::fuzz as journal;
pub use crate::registry::fuzz as registry;
pub use crate::rpc::fuzz as messages;
