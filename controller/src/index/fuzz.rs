//! Lists as they stand, from any bytes: see [`crate::fuzz`].

use super::listing::Index;
use std::collections::BTreeSet;

/// A list of builds.
pub fn list(bytes: &[u8]) -> String {
    let Some(index) = Index::read(bytes) else {
        let why = serde_json::from_slice::<Index>(bytes).err().map(|error| error.to_string()).unwrap_or_default();
        return why.split(" at line").next().unwrap_or_default().to_owned();
    };
    let file = index.clone().file(Some(bytes));
    let again = Index::read(&file).expect("what was written is read");
    // Whoever comes next has nothing to add: else two writers would write for ever.
    assert_eq!(again.clone().file(Some(&file)), file);
    let channels: BTreeSet<_> = again.channels().cloned().collect();
    for channel in &channels {
        let own = again.of_channel(channel);
        assert!(!own.is_empty() && own.channels().all(|of| of == channel));
    }
    let latest = again.latest().map_or(0, |latest| latest.file().len());
    format!("{} channels, empty {}, latest {}", channels.len().min(3), again.is_empty(), latest > 0)
}
