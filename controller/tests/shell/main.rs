//! The controller from outside: gRPC and HTTP over TLS on loopback, with workers that speak the real protocol.

mod access;
mod approval;
mod audit;
mod cancel;
mod channels;
mod common;
mod crash;
mod enrol;
mod fencing;
mod flow;
mod full_disk;
mod gate;
mod holds;
mod hostile;
mod leases;
mod listing;
mod logs;
mod order;
mod pki;
mod placing;
mod policy;
mod probes;
mod publish;
mod registry;
mod restart;
mod restore;
mod rounds;
mod secrets;
mod sessions;
mod shutdown;
mod signed;
#[path = "../store/mod.rs"]
mod store;
mod submit;
mod tiers;
mod watch;
