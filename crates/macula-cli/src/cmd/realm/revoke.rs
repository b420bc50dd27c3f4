//! `macula realm revoke` and `rotate`.

use macula_grant::{Block, Grant, IssuerToken, Kind, RealmKey, Record, RevocationList, UnixTime};

use super::args::{RecordArgs, RevokeArgs, RotateArgs};
use super::file::{self, Readers};
use super::make::cannot_make;
use super::now;
use crate::connect::Asker;
use crate::failure::{Exit, Failure};
use crate::out;

/// Built-in procedure of gateways that takes a record's bytes and answers in JSON.
const REVOKE_PROCEDURE: &str = "macula.revoke";
/// The end of the calendar: a block whose expiry nobody knows is listed for ever.
const NEVER: UnixTime = UnixTime::from_secs(253_402_300_799);

/// Adds to the record.
pub(super) async fn revoke(args: RevokeArgs) -> Result<(), Failure> {
    let mut opened = Opened::load(&args.record)?;
    let mut blocks = Vec::new();
    for path in &args.grant {
        let text = file::text(path)?;
        let kind = Kind::of_text(&text).map_err(|error| file::wrong(path, error))?;
        let (realm, block) = if kind == Kind::Issuer {
            let issuer = IssuerToken::from_text(&text).map_err(|error| file::wrong(path, error))?;
            (issuer.realm().clone(), own_block(issuer.blocks(), |_| true))
        } else {
            let grant = Grant::from_text(&text).map_err(|error| file::wrong(path, error))?;
            (grant.realm().clone(), own_block(grant.blocks(), |block| block.endpoint.is_some()))
        };
        if realm != opened.key.realm() {
            let own = opened.key.realm();
            return Err(Failure::new(
                Exit::Denied,
                format!("{}: it is of realm {realm}, and the root key of {own}", path.display()),
                "pass the root key of its realm",
            ));
        }
        blocks.extend(block);
    }
    for block in &args.block {
        out::note(format_args!("block {block} stays listed: nobody knows when it expires"));
        blocks.push((*block, NEVER));
    }
    if args.endpoints.is_empty() && blocks.is_empty() {
        if args.record.gateway.is_some() && opened.is_known {
            let record = Record::sign(&opened.key, &opened.list).map_err(cannot_make)?;
            return push(&args.record, &record).await;
        }
        return Err(Failure::new(
            Exit::Usage,
            "nothing to revoke",
            "name endpoints, or grants with --grant, or blocks with --block",
        ));
    }
    opened.list.endpoints.extend(&args.endpoints);
    for (id, expires) in blocks {
        let known = opened.list.blocks.entry(id).or_insert(expires);
        *known = (*known).max(expires);
    }
    let record = opened.save(&args.record)?;
    push(&args.record, &record).await
}

/// Begins a new epoch.
pub(super) async fn rotate(args: RotateArgs) -> Result<(), Failure> {
    let mut opened = Opened::load(&args.record)?;
    let epoch = opened.key.epoch.max(opened.list.epoch_min) + 1;
    opened.key.epoch = epoch;
    opened.list.epoch_min = epoch;
    // All of them are of earlier epochs.
    opened.list.blocks.clear();
    let record = opened.save(&args.record)?;
    out::note(format_args!("epoch {epoch} begins: all issuer tokens and grants so far are void"));
    let root = args.record.root.display();
    out::note(format_args!("next: new issuer tokens, with macula realm issuer --root {root}"));
    push(&args.record, &record).await
}

/// A root key and the list that it signed last.
struct Opened {
    key: RealmKey,
    list: RevocationList,
    /// There is a record in the file.
    is_known: bool,
}

impl Opened {
    fn load(args: &RecordArgs) -> Result<Self, Failure> {
        let key = file::root(&args.root)?;
        let record = file::record(&args.revocations)?;
        let path = args.revocations.display();
        if let Some(record) = &record
            && *record.realm() != key.realm()
        {
            let (theirs, own) = (record.realm(), key.realm());
            return Err(Failure::new(
                Exit::Denied,
                format!("{path}: it is of realm {theirs}, and the root key of {own}"),
                "pass the record and the root key of one realm",
            ));
        }
        let is_known = record.is_some();
        let mut list = record.map(|record| record.list().clone()).unwrap_or_default();
        // Forgetting what was revoked would let it in again.
        if list.sequence < key.sequence {
            if !args.begin_anew {
                let latest = key.sequence;
                return Err(Failure::new(
                    Exit::Failure,
                    if is_known {
                        format!("{path} is record {}, and the latest is {latest}", list.sequence)
                    } else {
                        format!("{path} does not exist, and record {latest} was signed before")
                    },
                    "find the latest one; or give up what it revoked with --begin-anew",
                ));
            }
            list = RevocationList { epoch_min: key.epoch, ..RevocationList::default() };
        }
        list.sequence = list.sequence.max(key.sequence);
        list.epoch_min = list.epoch_min.max(1);
        Ok(Self { key, list, is_known })
    }

    /// Signs the list as the next record. The record is written first: should the program end
    /// between the two, the key is behind, which does no harm.
    fn save(mut self, args: &RecordArgs) -> Result<Record, Failure> {
        let forgotten = self.list.prune(now());
        self.list.sequence += 1;
        self.key.sequence = self.list.sequence;
        self.key.epoch = self.key.epoch.max(self.list.epoch_min);
        let record = Record::sign(&self.key, &self.list).map_err(cannot_make)?;
        file::replace(&args.revocations, &record.to_text(), Readers::Others)?;
        file::replace(&args.root, &self.key.to_text(), Readers::Owner)?;
        let (endpoints, blocks) = (self.list.endpoints.len(), self.list.blocks.len());
        out::note(format_args!(
            "wrote {}: record {}, {endpoints} endpoints and {blocks} blocks revoked, epoch {}",
            args.revocations.display(),
            self.list.sequence,
            self.list.epoch_min,
        ));
        if forgotten > 0 {
            out::note(format_args!("{forgotten} blocks are expired and no longer listed"));
        }
        Ok(record)
    }
}

/// The block of a chain that makes it what it is, and when all that contain it have expired.
fn own_block(
    blocks: &[Block],
    is_own: impl Fn(&Block) -> bool,
) -> Option<(macula_grant::BlockId, UnixTime)> {
    let at = blocks.iter().rposition(is_own)?;
    let until = blocks.iter().take(at + 1).filter_map(|block| block.terms.expires).min()?;
    blocks.get(at).map(|block| (block.id, until))
}

/// Hands the record to the gateway, if one is named.
async fn push(args: &RecordArgs, record: &Record) -> Result<(), Failure> {
    let Some(gateway) = &args.gateway else {
        out::note("gateways do not know it yet: hand it to them with -g GATEWAY");
        return Ok(());
    };
    let written =
        || format!("{} is written, but handing it over failed", args.revocations.display());
    let asker = Asker::connect(gateway, &args.connect, (None, None)).await;
    let asker = asker.map_err(|failure| failure.context(written()))?;
    let answer = asker.builtin(REVOKE_PROCEDURE).arg(record.as_bytes().to_vec()).send().await;
    asker.close().await;
    let answer = answer.map_err(|error| Failure::from(error).context(written()))?;
    out::note(format_args!("handed to gateway {}", gateway.host_port()));
    out::line(String::from_utf8_lossy(&answer).trim_end())
}
