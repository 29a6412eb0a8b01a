//! Our side, in a process of its own: what a worker does with an output and an input, with the worker's own code for bytes.

use super::files::Input;
use super::sample::{self, Sample};
use super::store::{Answer, Ask, Kind, Service};
use anyhow::Context as _;
use futures_util::future::maybe_done;
use railyard_common::blob::{Blob, Encoding, PartChecksum, PartToSign};
use railyard_common::compress::{Codec, Packing};
use railyard_common::digest::Digest;
use railyard_service::channel::{Endpoint, http_client};
use railyard_transfer::{
    Form, Hashed, Memory, PartLog, PartUrls, Press, Settings, Stored, Ticket, Transfer, Want, hash_beside, hash_file,
    silent,
};
use std::path::{Path, PathBuf};
use std::pin::pin;
use std::process::Command;

/// Argument that only this bench gives to itself.
const AS_CLIENT: &str = "--as-client";
/// How workers pack what stays in the farm.
const IN_FARM: Packing = Packing { codec: Codec::Zstd, level: 1 };

/// Runs the client, if the command line asks for it.
pub fn is_child() -> anyhow::Result<bool> {
    let args: Vec<String> = std::env::args().skip(1).collect();
    let runtime = || tokio::runtime::Builder::new_multi_thread().enable_all().build();
    match args.iter().map(String::as_str).collect::<Vec<_>>()[..] {
        [AS_CLIENT, "push", control, ca, pack, ref files @ ..] => {
            let client = Client::new(control, ca)?;
            let pushing = files.iter().map(|file| client.push(Path::new(file), pack == "pack"));
            runtime()?.block_on(futures_util::future::try_join_all(pushing))?;
        }
        [AS_CLIENT, "pull", control, ca, ref pairs @ ..] => {
            let client = Client::new(control, ca)?;
            let pulling = pairs.chunks_exact(2).map(|pair| client.pull(pair[0], Path::new(pair[1])));
            runtime()?.block_on(futures_util::future::try_join_all(pulling))?;
        }
        _ => return Ok(false),
    }
    Ok(true)
}

fn command(way: &str, service: &Service) -> anyhow::Result<Command> {
    let mut command = Command::new(std::env::current_exe()?);
    let ca = if service.kind == Kind::EmbeddedTls { service.ca.as_os_str().to_owned() } else { "".into() };
    command.args([AS_CLIENT, way, &service.control]).arg(ca);
    Ok(command)
}

/// Pushes a file, as an output that stays in the farm.
pub fn push(service: &Service, file: &Path, input: Input) -> anyhow::Result<(u64, Sample)> {
    let bytes = std::fs::metadata(file)?.len();
    let mut command = command("push", service)?;
    command.arg(if input == Input::Text { "pack" } else { "plain" }).arg(file);
    Ok((bytes, sample::run(&command)?))
}

/// Pushes some files at once.
pub fn push_all(service: &Service, files: &[PathBuf]) -> anyhow::Result<Sample> {
    let mut command = command("push", service)?;
    sample::run(command.arg("plain").args(files))
}

/// Pulls some files at once.
pub fn pull_all(service: &Service, files: &[PathBuf], space: &Path) -> anyhow::Result<Sample> {
    let mut command = command("pull", service)?;
    for (n, file) in files.iter().enumerate() {
        command.arg(digest_of(file)?.to_string()).arg(space.join(format!("pulled-{n}")));
    }
    let sample = sample::run(&command)?;
    for n in 0..files.len() {
        std::fs::remove_file(space.join(format!("pulled-{n}")))?;
    }
    Ok(sample)
}

/// Pulls it back, and compares.
pub fn pull(service: &Service, file: &Path, _input: Input, space: &Path) -> anyhow::Result<(u64, Sample)> {
    let bytes = std::fs::metadata(file)?.len();
    let dest = space.join("pulled");
    let mut command = command("pull", service)?;
    command.arg(digest_of(file)?.to_string()).arg(&dest);
    let sample = sample::run(&command)?;
    anyhow::ensure!(Command::new("cmp").arg(file).arg(&dest).status()?.success(), "it came back changed");
    std::fs::remove_file(dest)?;
    Ok((bytes, sample))
}

fn digest_of(file: &Path) -> anyhow::Result<Digest> {
    let runtime = tokio::runtime::Builder::new_current_thread().enable_all().build()?;
    Ok(runtime.block_on(hash_file(file))?.digest)
}

struct Client {
    control: String,
    ask: reqwest::Client,
    transfer: Transfer,
}

impl Client {
    fn new(control: &str, ca: &str) -> anyhow::Result<Self> {
        let http = match ca {
            "" => reqwest::Client::builder().http1_only().build()?,
            ca => {
                let ca_pem = std::fs::read_to_string(ca)?;
                http_client(&Endpoint { url: "https://127.0.0.1".to_owned(), ca_pem, identity: None })?
            }
        };
        let transfer = Transfer::new(http, Settings::default());
        Ok(Self { control: control.to_owned(), ask: reqwest::Client::new(), transfer })
    }

    async fn push(&self, file: &Path, pack: bool) -> anyhow::Result<()> {
        let packed = tempfile::NamedTempFile::new_in(file.parent().context("it has no directory")?)?;
        let press = Press::new(Memory::default());
        let packing = async {
            match pack {
                true => press.compress(file, packed.path(), IN_FARM, Want::Nothing, |_| {}).await.map(Some),
                false => Ok(None),
            }
        };
        let mut packing = pin!(maybe_done(packing));
        let Hashed { digest, bytes, crc32s } = hash_beside(file, packing.as_mut()).await?;
        let plain = Blob::plain(digest, bytes);
        if let Answer::Urls { .. } = self.ask(&Ask::Find { blob: plain }).await? {
            anyhow::bail!("it is there already");
        }
        packing.as_mut().await;
        let (blob, stored) = match packing.take_output().transpose()?.flatten() {
            Some(pressed) => {
                let stored_bytes = pressed.packed.bytes;
                (Blob { encoding: Encoding::Zstd, stored_bytes, ..plain }, Stored::from(packed.path()))
            }
            None => (plain, Stored { file, crc32s: Some(&crc32s) }),
        };
        let Answer::Send { upload_id, part_bytes, is_crc32 } = self.ask(&Ask::Begin { blob }).await? else {
            anyhow::bail!("it is there already")
        };
        let checksum = if is_crc32 { PartChecksum::Crc32 } else { PartChecksum::ContentMd5 };
        let ticket = Ticket { upload_id: upload_id.clone(), part_bytes, checksum };
        let urls = Urls { client: self, blob, upload_id: &upload_id };
        let sent = self.transfer.push(stored, &blob, &ticket, &urls, &PartLog::unkept(), &silent).await;
        let etags = sent.map_err(|error| anyhow::anyhow!("{error}"))?.etags;
        self.ask(&Ask::Complete { blob, upload_id, etags }).await?;
        Ok(())
    }

    async fn pull(&self, digest: &str, dest: &Path) -> anyhow::Result<()> {
        let blob = Blob::plain(digest.parse()?, 0);
        let Answer::Urls { urls } = self.ask(&Ask::Find { blob }).await? else { anyhow::bail!("no URL") };
        let found: Blob = serde_json::from_str(&urls[1])?;
        Ok(self.transfer.pull(&urls[0], &found, dest, Form::Plain, &silent).await?)
    }

    async fn ask(&self, ask: &Ask) -> anyhow::Result<Answer> {
        let answer = self.ask.post(&self.control).json(ask).send().await?;
        let text = answer.text().await?;
        serde_json::from_str(&text).with_context(|| text)
    }
}

struct Urls<'a> {
    client: &'a Client,
    blob: Blob,
    upload_id: &'a str,
}

impl PartUrls for Urls<'_> {
    type Error = anyhow::Error;

    async fn sign(&self, parts: Vec<PartToSign>) -> anyhow::Result<Vec<String>> {
        let ask = Ask::Sign { blob: self.blob, upload_id: self.upload_id.to_owned(), parts };
        match self.client.ask(&ask).await? {
            Answer::Urls { urls } => Ok(urls),
            _ => anyhow::bail!("no URLs"),
        }
    }
}
