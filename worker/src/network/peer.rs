//! Addresses and networks, as the settings name them.

use serde::Deserialize;
use std::fmt;
use std::net::Ipv4Addr;
use std::num::NonZeroU16;
use std::str::FromStr;

/// Longest prefix of an IPv4 network.
const PREFIX_MAX: u8 = 32;

/// An IPv4 network; a single address is one with a prefix of 32.
#[derive(Clone, Copy, Debug, PartialEq, Eq)]
pub struct Network {
    address: Ipv4Addr,
    prefix: u8,
}

/// What no step reaches.
#[derive(Clone, Debug, PartialEq, Eq, Deserialize)]
#[serde(try_from = "String")]
pub enum Denied {
    /// Every address of the host.
    Host,
    /// Addresses that are of this one link: most clouds have their metadata there.
    LinkLocal,
    /// Where other clouds have theirs.
    Metadata,
    /// The controller's port, wherever its name leads.
    Controller,
    /// A network.
    Network(Network),
}

/// An exception.
#[derive(Clone, Debug, PartialEq, Eq, Deserialize)]
#[serde(try_from = "String")]
pub struct Allowed {
    /// Where.
    pub network: Network,
    /// Only that one, by TCP.
    pub port: Option<u16>,
}

/// A text that is no network.
#[derive(Debug, thiserror::Error)]
#[error("`{text}` is not {expected}")]
pub struct BadPeer {
    text: String,
    expected: &'static str,
}

const NETWORK_FORM: &str = "an IPv4 address or network, such as `10.0.0.5` or `10.0.0.0/8`";
const DENIED_FORM: &str =
    "`host`, `link-local`, `metadata`, `controller`, or an IPv4 address or network, such as `10.0.0.0/8`";
const ALLOWED_FORM: &str =
    "an IPv4 address or network, with or without a port: `10.0.0.5`, `10.0.0.0/24`, `10.0.0.5:3128`";

impl Network {
    /// A single address.
    pub fn host(address: Ipv4Addr) -> Self {
        Self { address, prefix: PREFIX_MAX }
    }

    /// Whether an address is in it.
    pub fn contains(&self, address: Ipv4Addr) -> bool {
        let differ = self.address.to_bits() ^ address.to_bits();
        differ.leading_zeros() >= u32::from(self.prefix)
    }
}

impl FromStr for Network {
    type Err = BadPeer;

    fn from_str(text: &str) -> Result<Self, BadPeer> {
        let bad = || BadPeer { text: text.to_owned(), expected: NETWORK_FORM };
        let (address, prefix) = text.split_once('/').unwrap_or((text, "32"));
        let (address, prefix) = (address.parse::<Ipv4Addr>(), prefix.parse::<u8>());
        match (address, prefix) {
            (Ok(address), Ok(prefix)) if prefix <= PREFIX_MAX => Ok(Self { address, prefix }),
            _ => Err(bad()),
        }
    }
}

impl fmt::Display for Network {
    fn fmt(&self, f: &mut fmt::Formatter<'_>) -> fmt::Result {
        write!(f, "{}/{}", self.address, self.prefix)
    }
}

impl TryFrom<String> for Denied {
    type Error = BadPeer;

    fn try_from(text: String) -> Result<Self, BadPeer> {
        match text.as_str() {
            "host" => Ok(Self::Host),
            "link-local" => Ok(Self::LinkLocal),
            "metadata" => Ok(Self::Metadata),
            "controller" => Ok(Self::Controller),
            other => other.parse().map(Self::Network).map_err(|_| BadPeer { text, expected: DENIED_FORM }),
        }
    }
}

impl TryFrom<String> for Allowed {
    type Error = BadPeer;

    fn try_from(text: String) -> Result<Self, BadPeer> {
        let (network, port) = match text.split_once(':') {
            Some((network, port)) => (network, Some(port.parse::<NonZeroU16>().map(NonZeroU16::get))),
            None => (text.as_str(), None),
        };
        match (network.parse::<Network>(), port.transpose()) {
            (Ok(network), Ok(port)) => Ok(Self { network, port }),
            _ => Err(BadPeer { text, expected: ALLOWED_FORM }),
        }
    }
}

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn networks_are_read_and_anything_else_is_named() {
        for (text, want) in [("10.0.0.0/8", "10.0.0.0/8"), ("10.1.2.3", "10.1.2.3/32"), ("0.0.0.0/0", "0.0.0.0/0")] {
            assert_eq!(text.parse::<Network>().unwrap().to_string(), want);
        }
        for bad in ["", "10.0.0", "10.0.0.0/33", "10.0.0.0/-1", "fd00::/8", "10.0.0.0/8 -j ACCEPT", "a.example"] {
            assert!(Denied::try_from(bad.to_owned()).unwrap_err().to_string().contains("`host`"), "{bad}");
        }
        let allowed = Allowed::try_from("10.0.0.5:3128".to_owned()).unwrap();
        assert_eq!((allowed.network.to_string(), allowed.port), ("10.0.0.5/32".to_owned(), Some(3128)));
        for bad in ["10.0.0.5:", "10.0.0.5:0", "10.0.0.5:99999", "host", "[::1]:1"] {
            assert!(Allowed::try_from(bad.to_owned()).is_err(), "{bad}");
        }
    }
}
