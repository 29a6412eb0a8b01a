//! The farm, seen by a client verb: the connection, the first handshake, and refusals turned into sentences.

use crate::args::FarmArgs;
use crate::failure::Failure;
use crate::settings::{Settings, Surroundings};
use crate::view::Build;
use railyard_common::{PROTOCOL, VERSION};
use railyard_proto::v1::access_service_client::AccessServiceClient;
use railyard_proto::v1::admin_service_client::AdminServiceClient;
use railyard_proto::v1::client_service_client::ClientServiceClient;
use railyard_proto::v1::{self, GetBuildRequest, GetFarmRequest, GetFarmResponse};
use railyard_service::channel::{self, Endpoint};
use railyard_service::clock::{Clock as _, SystemClock};
use railyard_service::{MESSAGE_MAX_BYTES, rpc_error, telemetry, tls};
use std::error::Error;
use std::time::Duration;
use tonic::metadata::AsciiMetadataValue;
use tonic::transport::Channel;
use tonic::{Code, Request, Status};

/// How long an answer may take that is not a stream. The controller answers in milliseconds; a busy disk may take seconds.
const ANSWER_TIMEOUT: Duration = Duration::from_secs(30);

/// An open connection to a controller that speaks our protocol.
#[derive(Clone, Debug)]
pub struct Farm {
    client: ClientServiceClient<Channel>,
    access: AccessServiceClient<Channel>,
    admin: AdminServiceClient<Channel>,
    /// The header that a bearer token goes into.
    bearer: Option<AsciiMetadataValue>,
    endpoint: Endpoint,
}

impl Farm {
    /// Connects, and makes sure that the two understand each other.
    ///
    /// # Errors
    /// [`Failure::Usage`] for settings that cannot work, [`Failure::Farm`] when nobody answers or the protocol is another.
    pub async fn open(args: &FarmArgs) -> Result<Self, Failure> {
        let settings =
            Settings::resolve(args, &Surroundings::of_process()).map_err(|error| Failure::Usage(chain(&error)))?;
        let endpoint = settings.endpoint().map_err(|error| Failure::Usage(chain(&error)))?;
        let channel = channel::connect(&endpoint).map_err(|error| Failure::Usage(chain(&error)))?;
        let bearer = bearer(&settings)?;
        let access = AccessServiceClient::new(channel.clone());
        let admin = AdminServiceClient::new(channel.clone());
        let client = ClientServiceClient::new(channel).max_decoding_message_size(MESSAGE_MAX_BYTES);
        let farm = Self { client, access, admin, bearer, endpoint };
        let hello = GetFarmRequest { client_version: VERSION.to_owned(), protocol: PROTOCOL };
        let about = farm.client().get_farm(farm.request(hello)).await.map_err(|status| farm.refused(&status))?;
        check_protocol(&farm.endpoint.url, about.get_ref())?;
        Ok(farm)
    }

    /// For one call.
    pub fn client(&self) -> ClientServiceClient<Channel> {
        self.client.clone()
    }

    /// For one call about who comes in.
    pub fn access(&self) -> AccessServiceClient<Channel> {
        self.access.clone()
    }

    /// For one call about the controller itself: its audit, its secrets.
    pub fn admin(&self) -> AdminServiceClient<Channel> {
        self.admin.clone()
    }

    /// Where the controller is.
    pub fn endpoint(&self) -> &Endpoint {
        &self.endpoint
    }

    /// A message for a call with one answer: with a deadline, and in the current trace.
    pub fn request<T>(&self, message: T) -> Request<T> {
        let mut request = self.stream_request(message);
        request.set_timeout(ANSWER_TIMEOUT);
        request
    }

    /// A message for a call that is answered by a stream, for as long as it takes.
    pub fn stream_request<T>(&self, message: T) -> Request<T> {
        let mut request = Request::new(message);
        telemetry::inject(&tracing::Span::current(), request.metadata_mut());
        if let Some(bearer) = &self.bearer {
            request.metadata_mut().insert("authorization", bearer.clone());
        }
        request
    }

    /// The build as it is now.
    ///
    /// # Errors
    /// [`Failure::Farm`].
    pub async fn build(&self, build: &str) -> Result<Build, Failure> {
        self.try_build(build).await.map_err(|status| self.refused(&status))
    }

    /// The build as it is now; `None` if the farm does not know it.
    ///
    /// # Errors
    /// [`Failure::Farm`].
    pub async fn known_build(&self, build: &str) -> Result<Option<Build>, Failure> {
        match self.try_build(build).await {
            Ok(build) => Ok(Some(build)),
            Err(status) if rpc_error::reason_of(&status).as_deref() == Some(rpc_error::UNKNOWN_BUILD) => Ok(None),
            Err(status) => Err(self.refused(&status)),
        }
    }

    async fn try_build(&self, build: &str) -> Result<Build, Status> {
        let request = self.request(GetBuildRequest { build: build.to_owned() });
        let answer: v1::BuildView = self.client().get_build(request).await?.into_inner();
        let mut build = Build::from(answer);
        build.name_images(&self.endpoint.url);
        Ok(build)
    }

    /// What a refusal, or silence, means for people.
    pub fn refused(&self, status: &Status) -> Failure {
        // A connection that a controller ends for that does not always say so.
        let own = self.endpoint.identity.as_ref();
        let left = own.and_then(|pair| tls::secs_left(&pair.cert_pem, SystemClock.now()).ok());
        if is_connection_trouble(status) && left == Some(0) {
            return Failure::Farm(format!(
                "cannot reach the controller at {}: {}; your certificate has expired, as far as this host's clock is right: an operator \
                 gets you a token (`railyard token create`), and `railyard login` takes it",
                self.endpoint.url,
                root_cause(status)
            ));
        }
        refused(&self.endpoint.url, status)
    }
}

fn bearer(settings: &Settings) -> Result<Option<AsciiMetadataValue>, Failure> {
    let token = settings.token().map_err(|error| Failure::Usage(chain(&error)))?;
    let token = token.map(|token| format!("Bearer {token}").parse::<AsciiMetadataValue>());
    let mut value =
        token.transpose().map_err(|_| Failure::Usage("the bearer token has strange characters".to_owned()))?;
    if let Some(value) = &mut value {
        value.set_sensitive(true);
    }
    Ok(value)
}

fn refused(url: &str, status: &Status) -> Failure {
    if is_connection_trouble(status) {
        return Failure::Farm(unreachable(url, status));
    }
    let message = status.message();
    match (status.code(), rpc_error::reason_of(status).as_deref()) {
        (_, Some(rpc_error::BAD_PIPELINE | rpc_error::BAD_REQUEST)) | (Code::InvalidArgument, _) => {
            Failure::Usage(message.to_owned())
        }
        (_, Some(rpc_error::PROTOCOL)) => Failure::Farm(format!(
            "the controller at {url} and this railyard {VERSION} (protocol {PROTOCOL}) do not speak the same \
             protocol: {message}. Use the railyard that the farm runs"
        )),
        (Code::Unauthenticated, _) => Failure::Farm(format!(
            "the controller at {url} does not know you: {message}. An operator gets you a token \
             (`railyard token create`), and `railyard login` takes it"
        )),
        (Code::PermissionDenied, _) => Failure::Farm(format!("the farm does not allow it: {message}")),
        (Code::Unimplemented, _) => Failure::Farm(format!(
            "the controller at {url} cannot do that; it may be older than this railyard {VERSION}"
        )),
        (Code::DeadlineExceeded | Code::Cancelled, _) => {
            Failure::Farm(format!("the controller at {url} did not answer within {}s", ANSWER_TIMEOUT.as_secs()))
        }
        _ if message.is_empty() => Failure::Farm(format!("the farm refuses: {}", status.code())),
        _ => Failure::Farm(message.to_owned()),
    }
}

fn check_protocol(url: &str, about: &GetFarmResponse) -> Result<(), Failure> {
    // A controller speaks its own number and the one before; a newer one that we do not fit has refused already.
    if about.protocol >= PROTOCOL {
        return Ok(());
    }
    Err(Failure::Farm(format!(
        "the controller at {url} is version {} and speaks protocol {}; this railyard {VERSION} needs protocol {PROTOCOL}. \
         Update the controller first, or use the railyard that it runs",
        about.version, about.protocol
    )))
}

/// The connection failed, not the call: worth another try. A status that came from the farm's own code has no source, one
/// that was made on this side has.
pub fn is_connection_trouble(status: &Status) -> bool {
    status.source().is_some() || (status.code() == Code::Unavailable && rpc_error::reason_of(status).is_none())
}

/// Whether the same call may succeed soon: the connection failed, or the controller is stopping or busy.
pub fn is_passing(status: &Status) -> bool {
    is_connection_trouble(status) || status.code() == Code::Unavailable
}

/// The deepest cause, which says most: "connection refused".
pub fn root_cause(status: &Status) -> String {
    let mut cause: Option<&dyn Error> = status.source();
    while let Some(deeper) = cause.and_then(Error::source) {
        cause = Some(deeper);
    }
    let text = cause.map_or_else(|| status.message().to_owned(), ToString::to_string);
    // What rustls says when a peer is killed, with a link to its manual behind it.
    if text.contains("close_notify") { "it closed the connection".to_owned() } else { text }
}

fn unreachable(url: &str, status: &Status) -> String {
    let cause = root_cause(status);
    // rustls says in words what is wrong; only the advice differs.
    let lower = cause.to_ascii_lowercase();
    let advice = if ["certificate", "unknownissuer", "unknownca"].iter().any(|word| lower.contains(word)) {
        "is that the farm's CA certificate, and is yours still valid?"
    } else {
        "is `railyard dev` running?"
    };
    format!("cannot reach the controller at {url}: {cause}; {advice}")
}

/// An error with all its causes on one line; none of ours repeats its source.
pub fn chain(error: &dyn Error) -> String {
    let mut text = error.to_string();
    let mut source = error.source();
    while let Some(cause) = source {
        let cause_text = cause.to_string();
        if !text.contains(&cause_text) {
            text.push_str(": ");
            text.push_str(&cause_text);
        }
        source = cause.source();
    }
    text
}

#[cfg(test)]
mod tests {
    use super::*;

    const URL: &str = "https://farm:7411";

    fn told(status: &Status) -> (u8, String) {
        match refused(URL, status) {
            Failure::Usage(message) => (2, message),
            Failure::Farm(message) => (3, message),
            other => panic!("{other:?}"),
        }
    }

    #[test]
    fn refusals_say_whose_turn_it_is() {
        for (code, reason, exit, words) in [
            (Code::InvalidArgument, rpc_error::BAD_PIPELINE, 2, "no good"),
            (Code::NotFound, rpc_error::UNKNOWN_BUILD, 3, "no good"),
            (Code::FailedPrecondition, rpc_error::PROTOCOL, 3, "do not speak the same protocol: no good"),
            (Code::Unauthenticated, rpc_error::UNAUTHENTICATED, 3, "`railyard login` takes it"),
            (Code::PermissionDenied, rpc_error::FORBIDDEN, 3, "does not allow it: no good"),
            (Code::Unavailable, rpc_error::STOPPING, 3, "no good"),
        ] {
            let (found, message) = told(&rpc_error::refusal(code, reason, "no good"));
            assert!(found == exit && message.contains(words), "{reason}: {found} {message}");
        }
        assert_eq!(told(&Status::not_found("")).0, 3);
    }

    #[test]
    fn a_lost_connection_is_told_from_a_refusal() {
        let broken = Status::from_error(Box::new(std::io::Error::other("connection refused")));
        assert!(is_connection_trouble(&broken) && is_passing(&broken));
        let (exit, message) = told(&broken);
        assert_eq!(exit, 3);
        assert!(message.ends_with("at https://farm:7411: connection refused; is `railyard dev` running?"), "{message}");

        // As rustls names what the other side has told.
        for alert in ["CertificateExpired", "UnknownCA", "UnsupportedCertificate"] {
            let refused = std::io::Error::other(format!("received fatal alert: {alert}"));
            let (_, message) = told(&Status::from_error(Box::new(refused)));
            assert!(message.ends_with("is yours still valid?"), "{message}");
        }

        let stopping = rpc_error::refusal(Code::Unavailable, rpc_error::STOPPING, "stopping");
        assert!(!is_connection_trouble(&stopping) && is_passing(&stopping));
        assert!(!is_passing(&rpc_error::refusal(Code::NotFound, rpc_error::UNKNOWN_BUILD, "x")));
    }

    #[test]
    fn an_older_controller_is_explained() {
        let about = |protocol| GetFarmResponse { version: "0.0.9".to_owned(), protocol, ..GetFarmResponse::default() };
        assert!(check_protocol(URL, &about(PROTOCOL)).is_ok() && check_protocol(URL, &about(PROTOCOL + 1)).is_ok());
        let refusal = check_protocol(URL, &about(PROTOCOL - 1));
        assert!(
            matches!(refusal, Err(Failure::Farm(message)) if message.contains("0.0.9") && message.contains("Update"))
        );
    }
}
