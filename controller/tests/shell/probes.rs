//! What load balancers and tools ask: health, reflection, and plain HTTP probes.

use crate::common::{Controller, soon, until};
use std::collections::BTreeSet;
use tokio_stream::StreamExt as _;
use tonic_health::pb::HealthCheckRequest;
use tonic_health::pb::health_check_response::ServingStatus;
use tonic_health::pb::health_client::HealthClient;
use tonic_reflection::pb::v1::server_reflection_client::ServerReflectionClient;
use tonic_reflection::pb::v1::server_reflection_request::MessageRequest;
use tonic_reflection::pb::v1::server_reflection_response::MessageResponse;
use tonic_reflection::pb::v1::{ServerReflectionRequest, ServerReflectionResponse};

#[tokio::test]
async fn every_service_is_serving() {
    let controller = Controller::start().await;
    let health = HealthClient::new(controller.channel(None));
    for service in ["", "railyard.v1.ClientService", "railyard.v1.WorkerService"] {
        let look = async || {
            let request = HealthCheckRequest { service: service.to_owned() };
            let status = health.clone().check(request).await.ok()?.into_inner().status();
            (status == ServingStatus::Serving).then_some(())
        };
        until("SERVING", look).await;
    }
    let unknown = HealthCheckRequest { service: "railyard.v1.Nothing".to_owned() };
    assert_eq!(health.clone().check(unknown).await.unwrap_err().code(), tonic::Code::NotFound);
}

async fn reflect(controller: &Controller, question: MessageRequest) -> MessageResponse {
    let mut client = ServerReflectionClient::new(controller.channel(None));
    let request = ServerReflectionRequest { host: String::new(), message_request: Some(question) };
    let mut answers = client.server_reflection_info(tokio_stream::iter([request])).await.unwrap().into_inner();
    let answer: ServerReflectionResponse = soon("an answer", answers.next()).await.unwrap().unwrap();
    answer.message_response.unwrap()
}

#[tokio::test]
async fn reflection_lists_and_describes_the_services() {
    let controller = Controller::start().await;
    let MessageResponse::ListServicesResponse(list) =
        reflect(&controller, MessageRequest::ListServices(String::new())).await
    else {
        panic!("no list");
    };
    let names: BTreeSet<String> = list.service.into_iter().map(|service| service.name).collect();
    for wanted in ["grpc.health.v1.Health", "railyard.v1.ClientService", "railyard.v1.WorkerService"] {
        assert!(names.contains(wanted), "{wanted} is not in {names:?}");
    }
    let symbol = MessageRequest::FileContainingSymbol("railyard.v1.WorkerService".to_owned());
    let MessageResponse::FileDescriptorResponse(files) = reflect(&controller, symbol).await else {
        panic!("no description");
    };
    assert!(!files.file_descriptor_proto.is_empty());
}

#[tokio::test]
async fn probes_answer_over_plain_http_1_1_without_a_certificate() {
    let controller = Controller::start().await;
    let http = railyard_service::channel::http_client(&controller.endpoint(None)).unwrap();
    for probe in ["healthz", "readyz"] {
        let answer = http.get(format!("{}/{probe}", controller.url)).send().await.unwrap();
        assert_eq!((answer.status().as_u16(), answer.version()), (200, reqwest::Version::HTTP_11));
        assert_eq!(answer.text().await.unwrap(), "ok\n");
    }
}

#[tokio::test]
async fn the_client_settings_that_it_writes_lead_back_to_it() {
    let controller = Controller::start().await;
    let text = std::fs::read_to_string(controller.data_dir().join("client.toml")).unwrap();
    let settings: toml_like::Settings = toml_like::read(&text);
    assert_eq!(settings.url, controller.url);
    for file in [&settings.ca, &settings.cert, &settings.key] {
        assert!(controller.data_dir().join(file).is_file(), "{file}");
    }
}

/// Enough of TOML for a file of `name = "value"` lines.
mod toml_like {
    pub struct Settings {
        pub url: String,
        pub ca: String,
        pub cert: String,
        pub key: String,
    }

    pub fn read(text: &str) -> Settings {
        let value = |name: &str| {
            let line = text.lines().find_map(|line| line.strip_prefix(&format!("{name} = ")));
            line.unwrap_or_else(|| panic!("no {name} in {text}")).trim_matches('"').to_owned()
        };
        Settings { url: value("url"), ca: value("ca"), cert: value("cert"), key: value("key") }
    }
}
