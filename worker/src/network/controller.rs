//! Where the controller is: steps never speak to the farm.

use std::collections::BTreeSet;
use std::io;
use std::net::{IpAddr, SocketAddr};
use std::sync::{Mutex, PoisonError};
use std::time::Duration;
use tonic::transport::Uri;

/// How long a step waits for a name server that does not answer.
const LOOKUP_MAX: Duration = Duration::from_secs(5);

/// The controller's host, as the settings name it, and its port.
#[derive(Clone, Debug, PartialEq, Eq)]
pub struct Controller {
    host: String,
    port: u16,
}

impl Controller {
    /// Where this URL leads; `None` if it is no URL.
    pub fn of(url: &str) -> Option<Self> {
        let url: Uri = url.parse().ok()?;
        let usual = if url.scheme_str() == Some("http") { 80 } else { 443 };
        // As a URL has it, an address of IPv6 stands in brackets.
        let host = url.host()?.trim_start_matches('[').trim_end_matches(']').to_owned();
        Some(Self { host, port: url.port_u16().unwrap_or(usual) })
    }

    /// Whether the name says that it is on this host.
    pub(super) fn is_here(&self) -> bool {
        self.host == "localhost" || self.host.parse().is_ok_and(|ip: IpAddr| ip.is_loopback())
    }

    async fn look_up(&self) -> io::Result<BTreeSet<SocketAddr>> {
        let looking = tokio::net::lookup_host((self.host.as_str(), self.port));
        let found = tokio::time::timeout(LOOKUP_MAX, looking).await.map_err(|_| io::ErrorKind::TimedOut)??;
        Ok(found.map(|at| SocketAddr::new(at.ip().to_canonical(), at.port())).collect())
    }
}

/// The addresses of a controller, as far as this process has seen them.
#[derive(Debug)]
pub(super) struct Whereabouts {
    controller: Option<Controller>,
    seen: Mutex<BTreeSet<SocketAddr>>,
}

impl Whereabouts {
    /// Of none, there are none.
    pub(super) fn of(controller: Option<Controller>) -> Self {
        Self { controller, seen: Mutex::default() }
    }

    /// Every address that it has had: a name server that tells them by turns, or none of them for now, takes none back.
    ///
    /// # Errors
    /// If there never was an answer; for people.
    pub(super) async fn now(&self) -> Result<Vec<SocketAddr>, String> {
        let Some(controller) = &self.controller else { return Ok(Vec::new()) };
        let found = controller.look_up().await;
        let mut seen = self.seen.lock().unwrap_or_else(PoisonError::into_inner);
        match found {
            Ok(found) => seen.extend(found),
            Err(error) if seen.is_empty() => {
                let host = &controller.host;
                return Err(format!(
                    "the controller's name {host} cannot be looked up, to keep steps away from it: {error}"
                ));
            }
            Err(_) => {}
        }
        Ok(seen.iter().copied().collect())
    }
}

#[cfg(test)]
mod tests {
    use super::*;

    #[tokio::test]
    async fn a_url_leads_to_addresses() {
        for (url, want) in [
            ("https://192.0.2.7:7411", "192.0.2.7:7411"),
            ("https://192.0.2.7", "192.0.2.7:443"),
            ("http://192.0.2.7/", "192.0.2.7:80"),
            ("https://[2001:db8::1]:7411", "[2001:db8::1]:7411"),
            ("https://[::ffff:192.0.2.7]:7411", "192.0.2.7:7411"),
        ] {
            let found = Controller::of(url).unwrap().look_up().await.unwrap();
            assert_eq!(Vec::from_iter(found), [want.parse().unwrap()], "{url}");
        }
        assert_eq!(Controller::of("not a url"), None);
        for url in ["https://127.0.0.1:7411", "https://localhost:7411", "https://[::1]:7411"] {
            assert!(Controller::of(url).unwrap().is_here(), "{url}");
        }
    }

    #[tokio::test]
    async fn what_was_seen_is_not_forgotten() {
        let nowhere = Whereabouts::of(Controller::of("https://nowhere.invalid:7411"));
        assert!(nowhere.now().await.unwrap_err().contains("nowhere.invalid cannot be looked up"));
        let before: SocketAddr = "192.0.2.7:7411".parse().unwrap();
        nowhere.seen.lock().unwrap().insert(before);
        assert_eq!(nowhere.now().await, Ok(vec![before]));
        let moved = Whereabouts::of(Controller::of("https://192.0.2.9:7411"));
        moved.seen.lock().unwrap().insert(before);
        assert_eq!(moved.now().await, Ok(vec![before, "192.0.2.9:7411".parse().unwrap()]));
        assert_eq!(Whereabouts::of(None).now().await, Ok(Vec::new()));
    }
}
