//! `secret`: what steps get that nobody else may see.

use crate::args::{SecretListArgs, SecretRemoveArgs, SecretSetArgs, SecretTask};
use crate::failure::Failure;
use crate::farm::Farm;
use crate::render::style::Tone;
use crate::render::table::{Cell, Table};
use crate::render::{Console, human};
use crate::view::Secret;
use railyard_common::secret::SECRET_MAX_BYTES;
use railyard_proto::v1;
use serde::Serialize;
use std::io::{self, Read as _};
use std::path::Path;

/// `railyard secret …`
///
/// # Errors
/// [`Failure::Usage`], [`Failure::Farm`].
pub async fn secret(task: &SecretTask, console: &Console) -> Result<(), Failure> {
    match task {
        SecretTask::Set(args) => set(args, console).await,
        SecretTask::List(args) => list(args, console).await,
        SecretTask::Remove(args) => remove(args, console).await,
    }
}

/// What `secret set` says.
#[derive(Serialize)]
struct Stored {
    name: String,
    replaced: bool,
}

async fn set(args: &SecretSetArgs, console: &Console) -> Result<(), Failure> {
    let value = read(&args.file)?;
    let farm = Farm::open(&args.ask.farm).await?;
    let name = args.name.to_string();
    let request = v1::SetSecretRequest {
        name: name.clone(),
        value,
        pipelines: args.pipeline.iter().map(ToString::to_string).collect(),
        steps: args.step.iter().map(ToString::to_string).collect(),
        replace: args.replace,
    };
    let answer = farm.admin().set_secret(farm.request(request)).await.map_err(|status| farm.refused(&status))?;
    let stored = Stored { name, replaced: answer.into_inner().replaced };
    if console.is_json() {
        return console.json(&stored);
    }
    let what = if stored.replaced { "replaced" } else { "stored" };
    console.print(&format!("secret {} is {what}; a step asks for it with `secrets: [{}]`\n", stored.name, stored.name))
}

/// The file as it is; one byte more than can be stored is enough to be told so.
fn read(file: &Path) -> Result<Vec<u8>, Failure> {
    let limit = SECRET_MAX_BYTES as u64 + 1;
    let mut value = Vec::new();
    let read = match file == Path::new("-") {
        true => io::stdin().lock().take(limit).read_to_end(&mut value),
        false => std::fs::File::open(file).and_then(|opened| opened.take(limit).read_to_end(&mut value)),
    };
    read.map_err(|error| Failure::Usage(format!("cannot read the secret from {}: {error}", file.display())))?;
    if value.len() > SECRET_MAX_BYTES {
        return Err(Failure::Usage(format!("{} has more than {SECRET_MAX_BYTES} bytes", file.display())));
    }
    Ok(value)
}

async fn list(args: &SecretListArgs, console: &Console) -> Result<(), Failure> {
    let farm = Farm::open(&args.ask.farm).await?;
    let answer = farm.admin().list_secrets(farm.request(v1::ListSecretsRequest {})).await;
    let secrets = answer.map_err(|status| farm.refused(&status))?.into_inner().secrets;
    let secrets: Vec<Secret> = secrets.into_iter().map(Secret::from).collect();
    if console.is_json() {
        return console.json(&secrets);
    }
    if secrets.is_empty() {
        console.note("there are no secrets; `railyard secret set` stores one");
        return Ok(());
    }
    let mut table = Table::new(&["SECRET", "PIPELINES", "STEPS", "STORED", "BY", "STATE"]);
    for secret in &secrets {
        let (tone, state) = match &secret.fault {
            None => (Tone::Good, "ok"),
            Some(fault) => (Tone::Bad, fault.as_str()),
        };
        let steps = if secret.steps.is_empty() { "all".to_owned() } else { secret.steps.join(", ") };
        table.row(vec![
            Cell::from(&secret.name),
            Cell::from(secret.pipelines.join(", ")),
            Cell::from(steps),
            Cell::from(secret.set_at.map(|at| human::age(at, console.now())).unwrap_or_default()),
            Cell::from(&secret.set_by),
            Cell::toned(state, tone),
        ]);
    }
    console.print(&table.render(console.out))
}

/// What `secret remove` says.
#[derive(Serialize)]
struct Removed {
    name: String,
}

async fn remove(args: &SecretRemoveArgs, console: &Console) -> Result<(), Failure> {
    let farm = Farm::open(&args.ask.farm).await?;
    let name = args.name.to_string();
    let request = farm.request(v1::RemoveSecretRequest { name: name.clone() });
    farm.admin().remove_secret(request).await.map_err(|status| farm.refused(&status))?;
    if console.is_json() {
        return console.json(&Removed { name });
    }
    console.print(&format!("secret {name} is gone\n"))
}
