//! Which registries an engine may be sent to. It pulls from the host itself, past the rules that keep steps away from it; and who
//! names an image says where it is sent.

use super::NetworkConfig;
use super::peer::{Denied, Network};
use super::rules::METADATA;
use std::net::{IpAddr, Ipv4Addr, SocketAddr, UdpSocket};

/// Where engines ask if a reference names no port: for a registry of their own host by HTTP, too.
const PORTS: [u16; 2] = [443, 80];

/// Refuses a reference whose registry is where no step may reach.
///
/// # Errors
/// Which, for people. A name that cannot be looked up is left to the engine.
pub(super) async fn may_pull(config: &NetworkConfig, controller: &[SocketAddr], reference: &str) -> Result<(), String> {
    let Some(registry) = registry(reference) else { return Ok(()) };
    let (host, port) = match registry.rsplit_once(':') {
        Some((host, port)) => (host, port.parse().ok()),
        None => (registry, None),
    };
    // Of an address of IPv6 they are no part.
    let host = host.trim_start_matches('[').trim_end_matches(']');
    let Ok(addresses) = tokio::net::lookup_host((host, port.unwrap_or(PORTS[0]))).await else { return Ok(()) };
    let ports = port.map_or(PORTS.to_vec(), |port| vec![port]);
    let denied = addresses.map(|address| address.ip()).find(|ip| is_denied(config, controller, *ip, &ports));
    denied.map_or(Ok(()), |ip| {
        let remedy = match (ip, port) {
            (IpAddr::V4(ip), Some(port)) => format!("; if it is meant, put `{ip}:{port}` into `network.allow`"),
            (IpAddr::V4(ip), None) => format!("; if it is meant, put `{ip}` into `network.allow`"),
            (IpAddr::V6(_), _) => String::new(),
        };
        Err(format!("its registry {registry} is at {ip}, which the worker's settings keep steps away from{remedy}"))
    })
}

/// The registry that a reference names, as engines read it: what stands before the first slash, if it can be a host.
fn registry(reference: &str) -> Option<&str> {
    let (first, _) = reference.split_once('/')?;
    (first.contains(['.', ':']) || first == "localhost").then_some(first)
}

fn is_denied(config: &NetworkConfig, controller: &[SocketAddr], ip: IpAddr, ports: &[u16]) -> bool {
    let ip = ip.to_canonical();
    let is_in = |network: &Network| matches!(ip, IpAddr::V4(ip) if network.contains(ip));
    let is_allowed = config.allow.iter().any(|allowed| {
        is_in(&allowed.network) && allowed.port.is_none_or(|port| ports.iter().all(|asked| *asked == port))
    });
    let is_denied = config.deny.iter().any(|denied| match denied {
        Denied::Host => is_own(ip),
        Denied::LinkLocal => match ip {
            IpAddr::V4(ip) => ip.is_link_local(),
            IpAddr::V6(ip) => ip.is_unicast_link_local(),
        },
        Denied::Metadata => METADATA.iter().any(|metadata| ip == *metadata),
        Denied::Controller => controller.iter().any(|at| at.ip() == ip && ports.contains(&at.port())),
        Denied::Network(network) => is_in(network),
    });
    is_denied && !is_allowed
}

/// Whether it is an address of this host: only these can be bound.
fn is_own(ip: IpAddr) -> bool {
    let is_nobody = ip.is_unspecified() || ip.is_multicast() || ip == IpAddr::V4(Ipv4Addr::BROADCAST);
    is_nobody || ip.is_loopback() || UdpSocket::bind(SocketAddr::new(ip, 0)).is_ok()
}

#[cfg(test)]
mod tests {
    use super::*;
    use crate::network::peer::Allowed;

    fn config(deny: &[&str], allow: &[&str]) -> NetworkConfig {
        NetworkConfig {
            deny: deny.iter().map(|&text| Denied::try_from(text.to_owned()).unwrap()).collect(),
            allow: allow.iter().map(|&text| Allowed::try_from(text.to_owned()).unwrap()).collect(),
            ..NetworkConfig::default()
        }
    }

    #[tokio::test]
    async fn an_image_is_not_pulled_from_where_no_step_may_reach() {
        let usual = NetworkConfig::default();
        for reference in [
            "localhost/x",
            "localhost:7411/x:1",
            "127.0.0.1:5000/a/b",
            "127.1.2.3/x",
            "169.254.169.254/latest/meta-data",
            "169.254.1.2:80/x",
            "168.63.129.16/x",
            "100.100.100.200:80/x",
            "0.0.0.0:7411/x",
        ] {
            let told = may_pull(&usual, &[], reference).await.unwrap_err();
            assert!(told.contains(reference.split_once('/').unwrap().0) && told.contains("network.allow"), "{told}");
        }
        // Without a host in it, or with one of other networks; and what is no name at all.
        for reference in ["busybox", "library/busybox:1", "192.0.2.1/x", "192.0.2.1:5000/x", "nowhere.invalid/x", ":/x"]
        {
            may_pull(&usual, &[], reference).await.unwrap();
        }
    }

    #[tokio::test]
    async fn settings_say_what_is_denied_and_what_is_not() {
        let strict = config(&["192.0.2.0/24"], &["192.0.2.7", "192.0.2.8:5000"]);
        for (reference, is_good) in [
            ("192.0.2.1/x", false),
            ("192.0.2.7/x", true),
            ("192.0.2.7:9/x", true),
            ("192.0.2.8:5000/x", true),
            ("192.0.2.8:5001/x", false),
            ("192.0.2.8/x", false),
            ("127.0.0.1/x", true),
        ] {
            assert_eq!(may_pull(&strict, &[], reference).await.is_ok(), is_good, "{reference}");
        }
        let farm = ["192.0.2.7:7411".parse().unwrap()];
        may_pull(&NetworkConfig::default(), &farm, "192.0.2.7:7411/x").await.unwrap_err();
        may_pull(&NetworkConfig::default(), &farm, "192.0.2.7:5000/x").await.unwrap();
        may_pull(&config(&["controller"], &["192.0.2.7:7411"]), &farm, "192.0.2.7:7411/x").await.unwrap();
        let local = config(&["host", "link-local"], &["127.0.0.1"]);
        may_pull(&local, &[], "127.0.0.1:5000/x").await.unwrap();
        may_pull(&local, &[], "169.254.169.254/x").await.unwrap_err();
    }
}
