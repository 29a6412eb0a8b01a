//! The closed list of what the audit knows: one word for each act.

use serde::{Serialize, Serializer};
use std::fmt;

/// Makes the list, its words and [`Act::ALL`] from one table.
macro_rules! acts {
    ($($(#[$doc:meta])+ $act:ident = $word:literal,)+) => {
        /// What was done, or tried.
        #[derive(Clone, Copy, Debug, PartialEq, Eq, PartialOrd, Ord, Hash)]
        pub enum Act {
            $($(#[$doc])+ $act,)+
        }

        impl Act {
            /// Every act.
            pub const ALL: &[Self] = &[$(Self::$act,)+];

            /// The word in the file, in messages and on the command line.
            pub fn as_str(self) -> &'static str {
                match self {
                    $(Self::$act => $word,)+
                }
            }
        }
    };
}

acts! {
    /// A build was submitted.
    Submit = "submit",
    /// A build, or jobs of it, were cancelled.
    Cancel = "cancel",
    /// A build runs again.
    Retry = "retry",
    /// Jobs that waited for approval go on.
    Approve = "approve",
    /// A worker gets no new jobs.
    Cordon = "cordon",
    /// A worker is emptied.
    Drain = "drain",
    /// A worker is emptied and sent away.
    Retire = "retire",
    /// A worker gets jobs again.
    Uncordon = "uncordon",
    /// Retention must keep a build.
    Pin = "pin",
    /// Retention need not keep a build any more.
    Unpin = "unpin",
    /// A build was given a tag.
    Tag = "tag",
    /// A tag was taken back.
    Untag = "untag",
    /// A build was put into a channel.
    Promote = "promote",
    /// A build was deleted.
    Delete = "delete",
    /// The farm's state was taken away as a backup.
    Backup = "backup",
    /// A token was made.
    TokenCreate = "token-create",
    /// A token was taken back.
    TokenRevoke = "token-revoke",
    /// A worker or a person got its first certificate for a token.
    Enrol = "enrol",
    /// A certificate was renewed.
    Renew = "renew",
    /// A worker's or a person's certificates were taken back.
    Revoke = "revoke",
    /// A token, a password or a certificate was wrong.
    LoginFailure = "login-failure",
    /// A secret was stored.
    SecretSet = "secret-set",
    /// A secret was removed.
    SecretRemove = "secret-remove",
    /// A worker was given the secrets of a step.
    SecretGive = "secret-give",
    /// What the operator allows has changed.
    PolicyChange = "policy-change",
    /// It was asked what a sweep would delete.
    SweepPlan = "sweep-plan",
    /// A sweep is about to delete, or a build that only the cache knows is. Without a record of its end after it, it was cut off.
    SweepBegin = "sweep-begin",
    /// Retention deleted what nothing needs.
    Sweep = "sweep",
    /// A call was refused that is none of the other acts.
    Refused = "refused",
    /// The controller started.
    Start = "start",
    /// The controller stopped in order.
    Stop = "stop",
    /// The end of the audit's file was put in order after a crash.
    Repair = "repair",
    /// The audit before this record is damaged; here it begins anew.
    Break = "break",
}

impl fmt::Display for Act {
    fn fmt(&self, f: &mut fmt::Formatter<'_>) -> fmt::Result {
        f.pad(self.as_str())
    }
}

impl Serialize for Act {
    fn serialize<S: Serializer>(&self, serializer: S) -> Result<S::Ok, S::Error> {
        serializer.serialize_str(self.as_str())
    }
}
