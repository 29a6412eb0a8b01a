//! Certificates that are renewed while they are taken back, and again and again.

use super::*;
use crate::audit::{Entry, Wanted, verify};
use crate::driver::{Driver, Notices};
use crate::journal::{Journal, JournalError, Loaded};
use railyard_core::Snapshot;
use railyard_service::clock::SystemClock;
use railyard_service::task;
use railyard_service::tls::{KeyRequest, shown};
use rustls::pki_types::CertificateDer;
use rustls::pki_types::pem::PemObject as _;
use std::path::Path;
use std::pin::pin;
use tokio::sync::{Notify, broadcast, mpsc};
use tokio_util::sync::CancellationToken;

/// A journal that says when it is to make events durable, and waits until it may.
struct HeldUp {
    waits: mpsc::UnboundedSender<Vec<Event>>,
    goes_on: std::sync::mpsc::Receiver<()>,
}

impl Journal for HeldUp {
    fn load(&mut self) -> Result<Loaded, JournalError> {
        Ok(Loaded { snapshot: None, events: Vec::new() })
    }

    fn append(&mut self, events: &[Event]) -> Result<(), JournalError> {
        // A test that is over neither listens nor holds up.
        let _ = self.waits.send(events.to_vec());
        let _ = self.goes_on.recv();
        Ok(())
    }

    fn wants_snapshot(&self) -> bool {
        false
    }

    fn install(&mut self, _: &Snapshot) -> Result<(), JournalError> {
        Ok(())
    }
}

/// A farm whose journal the test holds up.
struct Stage {
    farm: Handle,
    waits: mpsc::UnboundedReceiver<Vec<Event>>,
    go_on: std::sync::mpsc::Sender<()>,
}

impl Stage {
    fn new() -> Self {
        let (waits_tx, waits) = mpsc::unbounded_channel();
        let (go_on, goes_on) = std::sync::mpsc::channel();
        let notices = Notices {
            changed: broadcast::Sender::new(16),
            ended: Vec::new(),
            listed: Vec::new(),
            finalize: Arc::new(Notify::new()),
        };
        let journal = Box::new(HeldUp { waits: waits_tx, goes_on });
        let (driver, farm) = Driver::open(journal, Arc::new(SystemClock), notices).unwrap();
        task::spawn("driver", driver.run(CancellationToken::new()));
        Self { farm, waits, go_on }
    }
}

fn access(farm: Handle, dir: &Path) -> AccessControl {
    let clock = Arc::new(SystemClock);
    let authority = Arc::new(Authority::open_or_create(&dir.join("pki"), "test").unwrap());
    let audit = Audit::open(&dir.join("audit"), clock.clone()).unwrap();
    let validity = Validity { worker_secs: 600, person_secs: 600 };
    AccessControl::new(farm, authority, clock, Arc::default(), audit, validity).unwrap()
}

/// A call to renew the certificate that `peer` shows.
fn renewal(peer: Peer) -> Request<v1::RenewRequest> {
    let mut request = Request::new(v1::RenewRequest { csr: KeyRequest::generate().unwrap().csr().to_vec() });
    request.extensions_mut().insert(peer);
    request
}

fn peer_of(access: &AccessControl, identity: &Identity) -> Peer {
    let pair = access.authority.issue_client(identity, 600).unwrap();
    let cert = CertificateDer::from_pem_slice(pair.cert_pem.as_bytes()).unwrap();
    Peer::certified(shown(&[cert]).unwrap(), ([127, 0, 0, 1], 1).into())
}

#[tokio::test]
async fn a_renewal_that_meets_its_revocation_is_refused() {
    let (dir, mut stage) = (tempfile::tempdir().unwrap(), Stage::new());
    let access = access(stage.farm.clone(), dir.path());
    let identity = Identity::new(Role::Worker, "anvil").unwrap();
    let peer = peer_of(&access, &identity);

    // The revocation is decided and not durable yet: the gate knows nothing of it.
    let revoke = Command::Revoke { identity, by: "operator/olga".to_owned(), why: "stolen".to_owned() };
    let mut revoke = pin!(stage.farm.decide(revoke));
    assert!(futures_util::poll!(&mut revoke).is_pending());
    while !stage.waits.recv().await.unwrap().iter().any(|event| matches!(event, Event::IdentityRevoked { .. })) {
        stage.go_on.send(()).unwrap();
    }
    assert!(!crate::access::is_revoked(&stage.farm.access().borrow(), &peer));
    stage.go_on.send(()).unwrap();
    let (renewed, revoked) = tokio::join!(access.renew(renewal(peer)), revoke);
    revoked.unwrap();
    let status = renewed.unwrap_err();
    assert_eq!(rpc_error::reason_of(&status).as_deref(), Some(rpc_error::REVOKED), "{status}");
}

#[tokio::test]
async fn a_thousand_renewals_are_a_few_records() {
    let (dir, stage) = (tempfile::tempdir().unwrap(), Stage::new());
    // Nothing is held up.
    (0..10).for_each(|_| stage.go_on.send(()).unwrap());
    let access = access(stage.farm.clone(), dir.path());
    let [anvil, hammer] = ["anvil", "hammer"].map(|name| peer_of(&access, &Identity::new(Role::Worker, name).unwrap()));
    let mut renewed = 0;
    for _ in 0..1_000 {
        match access.renew(renewal(anvil.clone())).await {
            Ok(_) => renewed += 1,
            Err(status) => {
                let reason = rpc_error::reason_of(&status);
                assert_eq!((status.code(), reason.as_deref()), (Code::ResourceExhausted, Some(rpc_error::BUSY)));
            }
        }
    }
    // It may have taken a minute or two.
    assert!((20..40).contains(&renewed), "{renewed}");
    access.renew(renewal(hammer)).await.unwrap();
    access.audit.close(Entry::new(Act::Stop)).await.unwrap();
    let verified = verify(&dir.path().join("audit"), &Wanted::default()).unwrap();
    let refused = verified.records - renewed - 2;
    assert!(verified.is_good() && (1..=30).contains(&refused), "{verified:?}");
}

#[test]
fn tokens_are_good_for_so_long_and_no_longer() {
    use TokenKind::{Bearer, Join};
    assert_eq!(ttl_secs(Join, Role::Worker), (900, 900));
    for role in [Role::Viewer, Role::Submitter, Role::Operator] {
        assert_eq!((ttl_secs(Join, role), ttl_secs(Bearer, role)), ((3_600, 86_400), (7_776_000, 31_622_400)));
    }
}
