//! Every call and every route, with every role and with what is worth nothing: as the table says.

use crate::common::{Controller, until};
use railyard_controller::access::table::{Say, TABLE};
use railyard_service::channel::Endpoint;
use railyard_service::clock::{Clock as _, SystemClock};
use railyard_service::enrol;
use railyard_service::tls::{Authority, Identity, KeyRequest, Role, client_config, term};
use std::time::Duration;

/// What became of a request.
#[derive(Debug, PartialEq, Eq)]
enum Fate {
    /// It was served, or refused for another reason than who asked.
    Passed,
    Unauthenticated,
    Forbidden,
    /// There was no connection.
    CutOff,
}

struct Caller {
    url: String,
    grpc: reqwest::Client,
    http: reqwest::Client,
    token: Option<String>,
}

impl Caller {
    fn new(endpoint: &Endpoint) -> Self {
        let tls = client_config(&endpoint.ca_pem, endpoint.identity.as_ref()).unwrap();
        let client = |protocol: &str| {
            let mut tls = tls.clone();
            tls.alpn_protocols = vec![protocol.as_bytes().to_vec()];
            reqwest::Client::builder().tls_backend_preconfigured(tls).timeout(Duration::from_secs(20))
        };
        let redirect = reqwest::redirect::Policy::none();
        Self {
            url: endpoint.url.clone(),
            grpc: client("h2").http2_prior_knowledge().build().unwrap(),
            http: client("http/1.1").http1_only().redirect(redirect).build().unwrap(),
            token: None,
        }
    }

    async fn fate(&self, call: &str) -> Fate {
        if call.starts_with("/railyard.") || call.starts_with("/grpc.") {
            self.rpc(call).await
        } else {
            self.get(call).await
        }
    }

    /// An empty message: enough to be let in, and too little for most calls.
    async fn rpc(&self, call: &str) -> Fate {
        let request = self.grpc.post(format!("{}{call}", self.url)).header("te", "trailers");
        let request = request.header("content-type", "application/grpc").body(vec![0; 5]);
        let Ok(answer) = self.bearing(request).send().await else { return Fate::CutOff };
        let header = |name: &str| answer.headers().get(name).map_or("", |value| value.to_str().unwrap()).to_owned();
        match Some(header("grpc-status").as_str()) {
            // Let in, and what it brought is no token.
            Some("16") if call.ends_with("/Enrol") && header("grpc-message").contains("not%20a%20token") => {
                Fate::Passed
            }
            Some("16") => Fate::Unauthenticated,
            Some("7") => Fate::Forbidden,
            // What is not there would be let through as well.
            Some("12") => panic!("{call} is not implemented"),
            _ => Fate::Passed,
        }
    }

    async fn get(&self, route: &str) -> Fate {
        let path = route.replace("{*path}", "builds/").replace("{*rest}", "_catalog");
        let Ok(answer) = self.bearing(self.http.get(format!("{}{path}", self.url))).send().await else {
            return Fate::CutOff;
        };
        match answer.status().as_u16() {
            401 => Fate::Unauthenticated,
            403 => Fate::Forbidden,
            _ => Fate::Passed,
        }
    }

    fn bearing(&self, request: reqwest::RequestBuilder) -> reqwest::RequestBuilder {
        match &self.token {
            Some(token) => request.bearer_auth(token),
            None => request,
        }
    }
}

/// Rows of the table that can be asked for from outside.
fn calls() -> impl Iterator<Item = &'static railyard_controller::access::table::Row> {
    TABLE.iter().filter(|row| row.call.starts_with('/'))
}

#[tokio::test(flavor = "multi_thread")]
async fn every_role_gets_what_its_column_says() {
    let controller = Controller::start().await;
    for role in [None, Some(Role::Viewer), Some(Role::Submitter), Some(Role::Operator), Some(Role::Worker)] {
        let caller = Caller::new(&controller.endpoint(role.map(|role| (role, "someone"))));
        for row in calls() {
            let wanted = match (row.says(role), role) {
                (Say::Yes, _) => Fate::Passed,
                (_, None) => Fate::Unauthenticated,
                // Without a signed URL it is nothing for workers either.
                (Say::No | Say::Url, Some(_)) => Fate::Forbidden,
            };
            let fate = caller.fate(row.call).await;
            assert_eq!(fate, wanted, "{role:?} {}", row.call);
        }
    }
}

#[tokio::test(flavor = "multi_thread")]
async fn a_bearer_token_gets_what_its_role_s_column_says() {
    let controller = Controller::start().await;
    let mut access = railyard_proto::v1::access_service_client::AccessServiceClient::new(
        controller.channel(Some((Role::Operator, "olga"))),
    );
    for role in [Role::Viewer, Role::Submitter, Role::Operator] {
        let request = railyard_proto::v1::CreateTokenRequest {
            kind: railyard_proto::v1::TokenKind::Bearer.into(),
            identity: format!("railyard://{role}/script"),
            ttl_secs: 0,
        };
        let token = access.create_token(request).await.unwrap().into_inner().token;
        let caller = Caller { token: Some(token), ..Caller::new(&controller.endpoint(None)) };
        for row in calls() {
            let wanted = if row.says(Some(role)) == Say::Yes { Fate::Passed } else { Fate::Forbidden };
            // There is no certificate to renew.
            let wanted = if row.call.ends_with("/Renew") { Fate::Forbidden } else { wanted };
            assert_eq!(caller.fate(row.call).await, wanted, "{role} {}", row.call);
        }
    }
    let caller = Caller { token: Some("railyard-bearer-x".to_owned()), ..Caller::new(&controller.endpoint(None)) };
    assert_eq!(caller.fate("/healthz").await, Fate::Unauthenticated, "a wrong token is never taken for none");
}

#[tokio::test(flavor = "multi_thread")]
async fn what_is_worth_nothing_opens_nothing() {
    let controller = Controller::start().await;
    let pki = controller.data_dir().join("pki");
    let identity = Identity::new(Role::Operator, "mallory").unwrap();
    // Expired: good until a moment that is over.
    let expired = Authority::open_or_create(&pki, "test").unwrap().issue_client(&identity, 0).unwrap();
    // One that expires in this second is good until its end.
    let (_, end) = term(&expired.cert_pem).unwrap();
    until("the end of the certificate", async || (SystemClock.now() > end.plus(1000)).then_some(())).await;
    // Of another CA that has the same name.
    let elsewhere = tempfile::tempdir().unwrap();
    let foreign = Authority::open_or_create(elsewhere.path(), &controller.config.farm).unwrap();
    let foreign = foreign.issue_client(&identity, 3600).unwrap();
    // Revoked.
    let revoked = controller.endpoint(Some((Role::Operator, "mallory"))).identity.unwrap();
    let mut access = railyard_proto::v1::access_service_client::AccessServiceClient::new(
        controller.channel(Some((Role::Operator, "olga"))),
    );
    let revoke = railyard_proto::v1::RevokeRequest { identity: identity.uri(), why: String::new() };
    access.revoke(revoke).await.unwrap();
    // In the audit they are before those that a flood of them leaves out.
    for (pair, why) in [(&expired, "expired"), (&foreign, "BadSignature")] {
        let caller = Caller::new(&Endpoint { identity: Some(pair.clone()), ..controller.endpoint(None) });
        assert_eq!(caller.fate("/healthz").await, Fate::CutOff);
        until("the line of the audit", async || {
            let text =
                std::fs::read_to_string(controller.data_dir().join("audit/audit-0000000000000001.jsonl")).unwrap();
            let words = ["\"login-failure\"", "\"certificate\"", "\"nobody\"", "127.0.0.1", why];
            text.lines().any(|line| words.iter().all(|word| line.contains(word))).then_some(())
        })
        .await;
    }
    let cut = [("expired", expired, Fate::CutOff), ("foreign", foreign, Fate::CutOff)];
    for (what, pair, fate) in cut.into_iter().chain([("revoked", revoked, Fate::Unauthenticated)]) {
        let endpoint = Endpoint { identity: Some(pair), ..controller.endpoint(None) };
        let caller = Caller::new(&endpoint);
        for row in calls() {
            assert_eq!(caller.fate(row.call).await, fate, "{what} {}", row.call);
        }
        if fate == Fate::Unauthenticated {
            controller.audited(&["\"by\":\"operator/mallory\"", "\"refused\"", "this certificate was revoked"]).await;
        }
        let (channel, key) = (railyard_service::channel::connect(&endpoint).unwrap(), KeyRequest::generate().unwrap());
        assert!(enrol::renew(channel, &key).await.is_err(), "{what}");
    }
    let fresh = Caller::new(&controller.endpoint(Some((Role::Operator, "mallory"))));
    assert_eq!(fresh.fate("/railyard.v1.ClientService/ListBuilds").await, Fate::Passed, "one that was issued later");
}

#[tokio::test]
async fn a_call_that_is_not_in_the_table_is_not_served() {
    let controller = Controller::start().await;
    let operator = Caller::new(&controller.endpoint(Some((Role::Operator, "olga"))));
    let request = operator.grpc.post(format!("{}/railyard.v1.ClientService/Unheard", controller.url));
    let answer = request.header("content-type", "application/grpc").body(vec![0; 5]).send().await.unwrap();
    assert_eq!(answer.headers()["grpc-status"], "7");
}

#[tokio::test]
async fn where_no_route_leads_the_gate_says_so_to_everybody() {
    let controller = Controller::start().await;
    for who in [None, Some((Role::Operator, "olga"))] {
        let caller = Caller::new(&controller.endpoint(who));
        for path in ["/", "/admin", "/cachet/", "/v3/", "/railyard.v1.NewService/Call"] {
            let answer = caller.http.get(format!("{}{path}", controller.url)).send().await.unwrap();
            assert_eq!(answer.status(), 404, "{who:?} {path}");
            assert_eq!(answer.text().await.unwrap(), "nothing is served here\n", "{who:?} {path}: not by the gate");
        }
        let request = caller.grpc.post(format!("{}/railyard.v1.NewService/Call", controller.url));
        let answer = request.header("content-type", "application/grpc").body(vec![0; 5]).send().await.unwrap();
        assert_eq!(answer.headers()["grpc-status"], "12", "{who:?}");
    }
}
