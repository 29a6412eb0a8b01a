//! Certificates that the controller makes.

use crate::common::Controller;
use crate::common::controller::local;
use railyard_service::clock::{Clock as _, SystemClock};
use railyard_service::tls::{Authority, CLIENT_VALIDITY_SECS, Identity, Role, secs_left};

#[tokio::test]
async fn the_operator_s_certificate_is_renewed_before_it_expires() {
    let controller = Controller::start().await;
    let pki = controller.data_dir().join("pki");
    let read = || std::fs::read_to_string(pki.join("operator.pem")).unwrap();
    let (first, address) = (read(), controller.address());
    let controller = controller.stop().await.start(address).await;
    assert_eq!(read(), first, "it is good for long, and was made anew");

    let old = Identity::new(Role::Operator, "operator").unwrap();
    let authority = Authority::open_or_create(&pki, &controller.config.farm).unwrap();
    authority.issue_client(&old, CLIENT_VALIDITY_SECS / 4).unwrap().write(&pki, "operator").unwrap();
    let _controller = controller.stop().await.start(address).await;
    assert!(secs_left(&read(), SystemClock.now()).unwrap() > CLIENT_VALIDITY_SECS / 2);
}

#[test]
fn a_directory_without_a_farm_does_not_become_one() {
    let dir = tempfile::tempdir().unwrap();
    let identity = Identity::new(Role::Viewer, "victor").unwrap();
    let error = railyard_controller::issue(&local(dir.path().join("mistyped")), &identity, dir.path()).unwrap_err();
    assert!(error.to_string().contains("ca.pem"), "{error:#}");
    assert!(!dir.path().join("mistyped").exists());
}
