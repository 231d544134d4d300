//! From ids that were seen to the contacts they belong to.

use std::collections::{BTreeMap, BTreeSet, HashMap};

use chrono::{DateTime, DurationRound, TimeDelta, Utc};
use diesel::QueryableByName;
use diesel::sql_types::{Array, Nullable, Text, Timestamptz, Uuid as SqlUuid};
use diesel_async::{AsyncPgConnection, RunQueryDsl};

use super::links::{self, Pair};
use super::{Because, lock_all, merge, move_facts};
use crate::db::{DbError, Prepare, sql};
use crate::domain::chance::Chance;
use crate::domain::ids::{ContactId, TenantId};
use crate::domain::person;

/// A person's id was seen. `Debug` shows nothing of it.
#[derive(Clone, Copy)]
pub struct Sighting<'a> {
    /// Whose contacts.
    pub tenant: TenantId,
    /// The id the person was met under.
    pub id: &'a str,
    /// Another id of theirs, where it was told along.
    pub other: Option<&'a str>,
    /// The name they go by on WhatsApp.
    pub name: Option<&'a str>,
    /// When they wrote; `None`: they were written to, or only spoken of.
    pub wrote_at: Option<DateTime<Utc>>,
}

impl std::fmt::Debug for Sighting<'_> {
    fn fmt(&self, f: &mut std::fmt::Formatter<'_>) -> std::fmt::Result {
        f.debug_struct("Sighting").field("tenant", &self.tenant).finish_non_exhaustive()
    }
}

/// A key and whose it is.
type Key = (TenantId, String);

#[derive(Clone, QueryableByName)]
struct Known {
    #[diesel(sql_type = SqlUuid)]
    tenant_id: TenantId,
    #[diesel(sql_type = Text)]
    key: String,
    #[diesel(sql_type = SqlUuid)]
    contact_id: ContactId,
    #[diesel(sql_type = Text)]
    wa_id: String,
    #[diesel(sql_type = Nullable<Text>)]
    push_name: Option<String>,
    #[diesel(sql_type = Nullable<Timestamptz>)]
    push_name_at: Option<DateTime<Utc>>,
    #[diesel(sql_type = Nullable<Timestamptz>)]
    last_seen_at: Option<DateTime<Utc>>,
    #[diesel(sql_type = Timestamptz)]
    created_at: DateTime<Utc>,
}

async fn known(conn: &mut AsyncPgConnection, keys: &BTreeSet<Key>) -> Result<Vec<Known>, DbError> {
    // Fenced off, so that each key leads to its row however few rows the planner believes in: a tenant alone leads to all of its
    // contacts.
    Ok(sql(
        "SELECT i.tenant_id, i.key, i.contact_id, i.wa_id, c.push_name, c.push_name_at, c.last_seen_at, c.created_at \
         FROM unnest($1, $2) AS w (tenant_id, key) \
         CROSS JOIN LATERAL (SELECT * FROM contact_ids i WHERE i.tenant_id = w.tenant_id AND i.key = w.key OFFSET 0) i \
         CROSS JOIN LATERAL (SELECT * FROM contacts c WHERE c.tenant_id = i.tenant_id AND c.id = i.contact_id OFFSET 0) c",
    )
    .bind::<Array<SqlUuid>, _>(keys.iter().map(|(tenant, _)| *tenant).collect::<Vec<_>>())
    .bind::<Array<Text>, _>(keys.iter().map(|(_, key)| key.as_str()).collect::<Vec<_>>())
    .prepared()
    .load(conn)
    .await?)
}

/// The contact of each sighting, made, completed and merged as need be; `None` where the id is no person's. Takes the tenants' locks,
/// if the caller has not; for the system role.
///
/// # Errors
/// When the database refuses; the transaction then must not be committed.
pub async fn resolve(
    conn: &mut AsyncPgConnection,
    chance: &Chance,
    now: DateTime<Utc>,
    because: Because,
    sightings: &[Sighting<'_>],
) -> Result<Vec<Option<ContactId>>, DbError> {
    let met: Vec<Option<Key>> =
        sightings.iter().map(|sighting| Some((sighting.tenant, person::key(sighting.id)?))).collect();
    let mut book = Book::default();
    for (sighting, key) in sightings.iter().zip(&met) {
        let Some((tenant, key)) = key else { continue };
        book.see(*tenant, key, sighting.id);
        book.met.insert((*tenant, key.clone()));
        let other = sighting.other.and_then(|other| Some((other, person::key(other)?)));
        if let Some((other, pair)) = other.and_then(|(id, other)| Some((id, Pair::of(*tenant, key, &other)?))) {
            book.see(*tenant, if pair.lid == *key { &pair.phone } else { &pair.lid }, other);
            book.pairs.insert(pair);
        }
    }
    if book.seen.is_empty() {
        return Ok(met.iter().map(|_| None).collect());
    }
    lock_all(conn, book.seen.keys().map(|(tenant, _)| *tenant)).await?;
    book.learn(known(conn, &book.seen.keys().cloned().collect()).await?);
    book.connect(conn, now, because).await?;
    let settled = book.settle(conn, chance, now, because).await?;
    note_names(conn, now, &book, sightings, &met, &settled).await?;
    Ok(met.into_iter().map(|key| settled.get(&key?).copied()).collect())
}

/// What is known of the ids that were seen.
#[derive(Default)]
struct Book {
    /// The keys that were seen, and how WhatsApp wrote them.
    seen: BTreeMap<Key, String>,
    /// Those of them that were not only told along.
    met: BTreeSet<Key>,
    known: HashMap<Key, Known>,
    /// Told along with what was seen.
    pairs: BTreeSet<Pair>,
    /// Keys of one person.
    edges: Vec<(Key, Key)>,
}

impl Book {
    fn see(&mut self, tenant: TenantId, key: &str, wa_id: &str) {
        let Some(wa_id) = person::plain(wa_id) else { return };
        let written = self.seen.entry((tenant, key.to_owned())).or_insert_with(|| wa_id.clone());
        // Of a number that is written in two ways the one with all its digits, whichever came first.
        if written.len() < wa_id.len() {
            *written = wa_id;
        }
    }

    fn learn(&mut self, rows: Vec<Known>) {
        self.known.extend(rows.into_iter().map(|row| ((row.tenant_id, row.key.clone()), row)));
    }

    fn contact(&self, key: &Key) -> Option<ContactId> {
        self.known.get(key).map(|known| known.contact_id)
    }

    /// Finds out which of the keys are one person's. Where everybody is known, which is the rule, this asks nobody.
    async fn connect(
        &mut self,
        conn: &mut AsyncPgConnection,
        now: DateTime<Utc>,
        because: Because,
    ) -> Result<(), DbError> {
        let news: Vec<Pair> = self
            .pairs
            .iter()
            .filter(|pair| {
                let lid = self.contact(&(pair.tenant, pair.lid.clone()));
                lid.is_none() || lid != self.contact(&(pair.tenant, pair.phone.clone()))
            })
            .cloned()
            .collect();
        let denied = links::remember(conn, now, because, &news).await?.denied;
        for pair in news.into_iter().filter(|pair| !denied.contains(pair)) {
            self.edges.push(((pair.tenant, pair.lid), (pair.tenant, pair.phone)));
        }
        for pair in denied {
            // The id that was told along is somebody else's, who was not seen.
            for key in [(pair.tenant, pair.lid), (pair.tenant, pair.phone)] {
                if !self.met.contains(&key) {
                    self.seen.remove(&key);
                }
            }
        }
        let fresh: Vec<Key> = self.seen.keys().filter(|key| !self.known.contains_key(*key)).cloned().collect();
        if !fresh.is_empty() {
            let reached = links::reachable(conn, &fresh).await?;
            self.edges.extend(reached.into_iter().map(|way| ((way.tenant_id, way.seed), (way.tenant_id, way.key))));
        }
        let further: BTreeSet<Key> = self
            .edges
            .iter()
            .flat_map(|(one, other)| [one, other])
            .filter(|key| !self.known.contains_key(*key) && !self.seen.contains_key(*key))
            .cloned()
            .collect();
        if !further.is_empty() {
            let rows = known(conn, &further).await?;
            self.learn(rows);
        }
        Ok(())
    }

    /// Makes the contacts that are missing, gives ids that are new to their contacts, and merges. Answers whose every key is.
    async fn settle(
        &self,
        conn: &mut AsyncPgConnection,
        chance: &Chance,
        now: DateTime<Utc>,
        because: Because,
    ) -> Result<HashMap<Key, ContactId>, DbError> {
        let mut settled: HashMap<Key, ContactId> =
            self.known.iter().map(|(key, known)| (key.clone(), known.contact_id)).collect();
        let mut made: Vec<(TenantId, ContactId)> = Vec::new();
        let mut ids: Vec<(Key, ContactId)> = Vec::new();
        // Who has more ids than before.
        let mut completed: BTreeMap<TenantId, BTreeSet<ContactId>> = BTreeMap::new();
        for group in self.groups() {
            let mut contacts: BTreeMap<ContactId, DateTime<Utc>> = BTreeMap::new();
            for known in group.iter().filter_map(|key| self.known.get(key)) {
                contacts.insert(known.contact_id, known.created_at);
            }
            let Some((tenant, _)) = group.as_slice().first() else { continue };
            let oldest = contacts.iter().min_by_key(|(id, created)| (**created, **id)).map(|(id, _)| *id);
            let contact = oldest.unwrap_or_else(|| {
                let id = ContactId::fresh(now, chance);
                made.push((*tenant, id));
                id
            });
            for other in contacts.into_keys().filter(|other| *other != contact) {
                merge::merge(conn, chance, now, *tenant, contact, other, because).await?;
            }
            for key in group {
                if !self.known.contains_key(&key) {
                    completed.entry(key.0).or_default().insert(contact);
                    ids.push((key.clone(), contact));
                }
                settled.insert(key, contact);
            }
        }
        // An id that WhatsApp writes with more digits than before.
        for (key, written) in &self.seen {
            if let Some(known) = self.known.get(key).filter(|known| known.wa_id.len() < written.len()) {
                let contact = settled.get(key).copied().unwrap_or(known.contact_id);
                completed.entry(key.0).or_default().insert(contact);
                ids.push((key.clone(), contact));
            }
        }
        make(conn, now, &made).await?;
        self.give(conn, now, &ids).await?;
        for (tenant, contacts) in completed {
            let contacts: Vec<ContactId> = contacts.into_iter().collect();
            refresh(conn, now, tenant, &contacts).await?;
            if ids.len() > made.len() {
                move_facts(conn, tenant, &contacts).await?;
            }
        }
        Ok(settled)
    }

    /// The keys that something is to be done with, person by person.
    fn groups(&self) -> Vec<Vec<Key>> {
        let mut places: HashMap<Key, usize> = HashMap::new();
        let mut sets = Sets::default();
        let fresh = self.seen.keys().filter(|key| !self.known.contains_key(*key));
        let mut keys: Vec<Key> =
            fresh.chain(self.edges.iter().flat_map(|(one, other)| [one, other])).cloned().collect();
        keys.sort_unstable();
        keys.dedup();
        // Two keys of one contact are one person's.
        let mut of_contact: HashMap<ContactId, usize> = HashMap::new();
        for key in &keys {
            let place = sets.add();
            places.insert(key.clone(), place);
            if let Some(contact) = self.contact(key) {
                let first = *of_contact.entry(contact).or_insert(place);
                sets.join(first, place);
            }
        }
        for (one, other) in &self.edges {
            if let (Some(one), Some(other)) = (places.get(one), places.get(other)) {
                sets.join(*one, *other);
            }
        }
        let mut groups: BTreeMap<usize, Vec<Key>> = BTreeMap::new();
        for (place, key) in keys.into_iter().enumerate() {
            groups.entry(sets.root(place)).or_default().push(key);
        }
        groups.into_values().collect()
    }

    /// Writes down whose `ids` are.
    async fn give(
        &self,
        conn: &mut AsyncPgConnection,
        now: DateTime<Utc>,
        ids: &[(Key, ContactId)],
    ) -> Result<(), DbError> {
        if ids.is_empty() {
            return Ok(());
        }
        let written = |key: &Key| self.seen.get(key).map_or_else(|| key.1.clone(), String::clone);
        sql("INSERT INTO contact_ids (tenant_id, key, contact_id, wa_id, created_at) \
             SELECT *, $5 FROM unnest($1, $2, $3, $4) AS i (tenant_id, key, contact_id, wa_id) \
             ON CONFLICT (tenant_id, key) DO UPDATE SET wa_id = excluded.wa_id")
        .bind::<Array<SqlUuid>, _>(ids.iter().map(|((tenant, _), _)| *tenant).collect::<Vec<_>>())
        .bind::<Array<Text>, _>(ids.iter().map(|((_, key), _)| key.as_str()).collect::<Vec<_>>())
        .bind::<Array<SqlUuid>, _>(ids.iter().map(|(_, contact)| *contact).collect::<Vec<_>>())
        .bind::<Array<Text>, _>(ids.iter().map(|(key, _)| written(key)).collect::<Vec<_>>())
        .bind::<Timestamptz, _>(now)
        .prepared()
        .execute(conn)
        .await?;
        Ok(())
    }
}

/// Sets that grow together.
#[derive(Default)]
struct Sets(Vec<usize>);

impl Sets {
    fn add(&mut self) -> usize {
        self.0.push(self.0.len());
        self.0.len() - 1
    }

    fn root(&self, mut place: usize) -> usize {
        while let Some(parent) = self.0.get(place).copied().filter(|parent| *parent != place) {
            place = parent;
        }
        place
    }

    fn join(&mut self, one: usize, other: usize) {
        let (one, other) = (self.root(one), self.root(other));
        if let Some(parent) = self.0.get_mut(one.max(other)) {
            *parent = one.min(other);
        }
    }
}

async fn make(conn: &mut AsyncPgConnection, now: DateTime<Utc>, made: &[(TenantId, ContactId)]) -> Result<(), DbError> {
    if made.is_empty() {
        return Ok(());
    }
    sql("INSERT INTO contacts (tenant_id, id, created_at, updated_at) \
         SELECT tenant_id, id, $3, $3 FROM unnest($1, $2) AS i (tenant_id, id)")
    .bind::<Array<SqlUuid>, _>(made.iter().map(|(tenant, _)| *tenant).collect::<Vec<_>>())
    .bind::<Array<SqlUuid>, _>(made.iter().map(|(_, id)| *id).collect::<Vec<_>>())
    .bind::<Timestamptz, _>(now)
    .prepared()
    .execute(conn)
    .await?;
    Ok(())
}

/// Shows number and hidden id of `contacts` as their ids are now.
pub(super) async fn refresh(
    conn: &mut AsyncPgConnection,
    now: DateTime<Utc>,
    tenant: TenantId,
    contacts: &[ContactId],
) -> Result<(), DbError> {
    // Digits of any length may come from WhatsApp; a number has 15 at the most.
    sql("UPDATE contacts c SET phone = n.phone, lid = n.lid, updated_at = $3, \
                version = c.version + (c.phone IS NOT NULL OR c.lid IS NOT NULL)::int \
         FROM (SELECT w.id, \
                   (SELECT CASE WHEN length(i.wa_id) < 24 THEN '+' || split_part(i.wa_id, '@', 1) END FROM contact_ids i \
                    WHERE i.tenant_id = $1 AND i.contact_id = w.id AND i.key NOT LIKE '%@lid' ORDER BY i.key COLLATE \"C\" LIMIT 1) AS phone, \
                   (SELECT i.wa_id FROM contact_ids i \
                    WHERE i.tenant_id = $1 AND i.contact_id = w.id AND i.key LIKE '%@lid' ORDER BY i.key COLLATE \"C\" LIMIT 1) AS lid \
               FROM unnest($2) w (id)) n \
         WHERE c.tenant_id = $1 AND c.id = n.id AND (c.phone, c.lid) IS DISTINCT FROM (n.phone, n.lid)")
    .bind::<SqlUuid, _>(tenant)
    .bind::<Array<SqlUuid>, _>(contacts)
    .bind::<Timestamptz, _>(now)
    .prepared()
    .execute(conn)
    .await?;
    Ok(())
}

/// What a person was last seen to go by, and when.
#[derive(Clone, Default)]
struct Seen {
    name: Option<(DateTime<Utc>, String)>,
    at: Option<DateTime<Utc>>,
}

/// Notes names and when people wrote, where that is news; to the minute.
async fn note_names(
    conn: &mut AsyncPgConnection,
    now: DateTime<Utc>,
    book: &Book,
    sightings: &[Sighting<'_>],
    met: &[Option<Key>],
    settled: &HashMap<Key, ContactId>,
) -> Result<(), DbError> {
    let mut news: BTreeMap<(TenantId, ContactId), Seen> = BTreeMap::new();
    for (sighting, key) in sightings.iter().zip(met) {
        let (Some(key), Some(wrote)) = (key, sighting.wrote_at) else { continue };
        let Some(contact) = settled.get(key) else { continue };
        let minute = wrote.duration_trunc(TimeDelta::minutes(1)).unwrap_or(wrote);
        let name = sighting.name.map(str::trim).filter(|name| !name.is_empty()).map(|name| (minute, name.to_owned()));
        let known = book.known.get(key);
        let old_name = known.and_then(|known| Some((known.push_name_at?, known.push_name.clone()?)));
        let seen = Seen {
            name: name.filter(|name| old_name.as_ref().is_none_or(|old| name > old)),
            at: Some(minute)
                .filter(|minute| known.and_then(|known| known.last_seen_at).is_none_or(|old| *minute > old)),
        };
        if seen.name.is_some() || seen.at.is_some() {
            let entry = news.entry((sighting.tenant, *contact)).or_default();
            entry.name = entry.name.take().max(seen.name);
            entry.at = entry.at.max(seen.at);
        }
    }
    if news.is_empty() {
        return Ok(());
    }
    // Compared once more: a contact that was merged just now may know better.
    sql("UPDATE contacts c SET \
             push_name = CASE WHEN n.better THEN n.name ELSE c.push_name END, \
             push_name_at = CASE WHEN n.better THEN n.name_at ELSE c.push_name_at END, \
             last_seen_at = greatest(c.last_seen_at, n.at), \
             version = c.version + (n.better AND n.name IS DISTINCT FROM c.push_name AND c.push_name IS NOT NULL)::int, \
             updated_at = $6 \
         FROM (SELECT i.*, i.name IS NOT NULL AND (o.push_name_at IS NULL OR i.name_at > o.push_name_at \
                          OR i.name_at = o.push_name_at AND i.name COLLATE \"C\" > o.push_name COLLATE \"C\") AS better \
               FROM unnest($1, $2, $3, $4, $5) AS i (tenant_id, id, name, name_at, at) CROSS JOIN LATERAL ( \
                   SELECT * FROM contacts o WHERE o.tenant_id = i.tenant_id AND o.id = i.id OFFSET 0) o) n \
         WHERE c.tenant_id = n.tenant_id AND c.id = n.id AND (n.better OR c.last_seen_at IS NULL OR c.last_seen_at < n.at)")
    .bind::<Array<SqlUuid>, _>(news.keys().map(|(tenant, _)| *tenant).collect::<Vec<_>>())
    .bind::<Array<SqlUuid>, _>(news.keys().map(|(_, id)| *id).collect::<Vec<_>>())
    .bind::<Array<Nullable<Text>>, _>(
        news.values().map(|seen| seen.name.as_ref().map(|(_, name)| name.as_str())).collect::<Vec<_>>(),
    )
    .bind::<Array<Nullable<Timestamptz>>, _>(
        news.values().map(|seen| seen.name.as_ref().map(|(at, _)| *at)).collect::<Vec<_>>(),
    )
    .bind::<Array<Nullable<Timestamptz>>, _>(news.values().map(|seen| seen.at).collect::<Vec<_>>())
    .bind::<Timestamptz, _>(now)
    .prepared()
    .execute(conn)
    .await?;
    Ok(())
}
