//! Who comes in, and as whom: certificates, tokens, revocations.

mod revoked;

pub use revoked::shut_out;
