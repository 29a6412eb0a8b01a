//! A farm that cannot start says why.

use std::net::TcpListener;
use std::process::Command;

#[test]
fn a_taken_port_is_said_and_is_a_failure() {
    let taken = TcpListener::bind("127.0.0.1:0").unwrap();
    let address = taken.local_addr().unwrap().to_string();
    let dir = tempfile::tempdir().unwrap();
    let output = Command::new(env!("CARGO_BIN_EXE_railyard"))
        .args(["dev", "--listen", &address, "--data"])
        .arg(dir.path())
        .output()
        .unwrap();
    let said = String::from_utf8_lossy(&output.stderr);
    assert_eq!(output.status.code(), Some(1), "{said}");
    assert!(said.contains(&address) && said.contains("is another controller running?"), "{said}");
}
