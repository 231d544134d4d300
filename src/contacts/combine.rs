//! What two contacts come to as one.

use chrono::{DateTime, Utc};
use diesel::QueryableByName;
use diesel::sql_types::{Array, Nullable, Text, Timestamptz, Uuid as SqlUuid};
use diesel_async::{AsyncPgConnection, RunQueryDsl};
use serde::{Deserialize, Serialize};

use crate::db::{DbError, Prepare, sql};
use crate::domain::ids::{ContactId, TenantId};

/// What is known of a contact beside its ids, as merges keep it. No `Debug`: it names a person.
#[derive(Clone, PartialEq, Eq, Serialize, Deserialize, QueryableByName)]
pub(super) struct Card {
    #[diesel(sql_type = SqlUuid)]
    pub id: ContactId,
    #[diesel(sql_type = Nullable<Text>)]
    pub name: Option<String>,
    #[diesel(sql_type = Nullable<Text>)]
    pub push_name: Option<String>,
    #[diesel(sql_type = Nullable<Timestamptz>)]
    pub push_name_at: Option<DateTime<Utc>>,
    #[diesel(sql_type = Array<Text>)]
    pub tags: Vec<String>,
    #[diesel(sql_type = Nullable<Text>)]
    pub notes: Option<String>,
    #[diesel(sql_type = Nullable<Timestamptz>)]
    pub last_seen_at: Option<DateTime<Utc>>,
    #[diesel(sql_type = Nullable<Timestamptz>)]
    pub erased_at: Option<DateTime<Utc>>,
    #[diesel(sql_type = Nullable<SqlUuid>)]
    pub merged_into: Option<ContactId>,
}

impl Card {
    /// This contact, to which `other` turned out to belong: its own name wins, tags are united, notes joined.
    pub(super) fn with(&self, other: &Self) -> Self {
        let mut tags = [self.tags.as_slice(), other.tags.as_slice()].concat();
        tags.sort_unstable();
        tags.dedup();
        let notes = match (&self.notes, &other.notes) {
            (Some(one), Some(two)) if one != two => Some(format!("{one}\n\n{two}")),
            (one, two) => one.clone().or_else(|| two.clone()),
        };
        let called = |card: &Self| Some((card.push_name_at?, card.push_name.clone()?));
        let (push_name_at, push_name) = called(self).max(called(other)).unzip();
        Self {
            id: self.id,
            name: self.name.clone().or_else(|| other.name.clone()),
            push_name,
            push_name_at,
            tags,
            notes,
            last_seen_at: self.last_seen_at.max(other.last_seen_at),
            erased_at: self.erased_at,
            merged_into: self.merged_into,
        }
    }

    /// `now`, which came of this contact by being `merged` with another, without what the other brought; what was changed since
    /// then stays.
    pub(super) fn without(&self, merged: &Self, now: &Self) -> Self {
        fn back<T: Clone + PartialEq>(before: &T, merged: &T, now: &T) -> T {
            if now == merged { before.clone() } else { now.clone() }
        }
        let same_call = (&now.push_name, &now.push_name_at) == (&merged.push_name, &merged.push_name_at);
        let called = if same_call { self } else { now };
        Self {
            id: now.id,
            name: back(&self.name, &merged.name, &now.name),
            push_name: called.push_name.clone(),
            push_name_at: called.push_name_at,
            tags: back(&self.tags, &merged.tags, &now.tags),
            notes: back(&self.notes, &merged.notes, &now.notes),
            last_seen_at: back(&self.last_seen_at, &merged.last_seen_at, &now.last_seen_at),
            erased_at: now.erased_at,
            merged_into: now.merged_into,
        }
    }
}

/// Those of `contacts` that there are.
pub(super) async fn cards(
    conn: &mut AsyncPgConnection,
    tenant: TenantId,
    contacts: &[ContactId],
) -> Result<Vec<Card>, DbError> {
    Ok(sql(
        "SELECT id, name, push_name, push_name_at, tags, notes, last_seen_at, erased_at, merged_into FROM contacts \
         WHERE tenant_id = $1 AND id = ANY($2)",
    )
    .bind::<SqlUuid, _>(tenant)
    .bind::<Array<SqlUuid>, _>(contacts)
    .prepared()
    .load(conn)
    .await?)
}

/// Writes `card`, and whether its contact is merged into another.
pub(super) async fn write(
    conn: &mut AsyncPgConnection,
    now: DateTime<Utc>,
    tenant: TenantId,
    card: &Card,
) -> Result<(), DbError> {
    sql("UPDATE contacts SET name = $3, push_name = $4, push_name_at = $5, tags = $6, notes = $7, last_seen_at = $8, \
                merged_into = $9, version = version + 1, updated_at = $10 \
         WHERE tenant_id = $1 AND id = $2")
    .bind::<SqlUuid, _>(tenant)
    .bind::<SqlUuid, _>(card.id)
    .bind::<Nullable<Text>, _>(&card.name)
    .bind::<Nullable<Text>, _>(&card.push_name)
    .bind::<Nullable<Timestamptz>, _>(card.push_name_at)
    .bind::<Array<Text>, _>(&card.tags)
    .bind::<Nullable<Text>, _>(&card.notes)
    .bind::<Nullable<Timestamptz>, _>(card.last_seen_at)
    .bind::<Nullable<SqlUuid>, _>(card.merged_into)
    .bind::<Timestamptz, _>(now)
    .prepared()
    .execute(conn)
    .await?;
    Ok(())
}

#[cfg(test)]
mod tests {
    use super::*;

    fn card(name: Option<&str>, tags: &[&str], notes: Option<&str>) -> Card {
        Card {
            id: ContactId(uuid::Uuid::nil()),
            name: name.map(str::to_owned),
            push_name: None,
            push_name_at: None,
            tags: tags.iter().map(|tag| (*tag).to_owned()).collect(),
            notes: notes.map(str::to_owned),
            last_seen_at: None,
            erased_at: None,
            merged_into: None,
        }
    }

    #[test]
    fn what_is_put_together_comes_apart_again() {
        let (one, two) = (card(Some("Ana"), &["vip"], Some("pays late")), card(Some("A."), &["new"], Some("tall")));
        let merged = one.with(&two);
        assert!(merged == card(Some("Ana"), &["new", "vip"], Some("pays late\n\ntall")));
        assert!(one.without(&merged, &merged) == one);
        let edited = Card { notes: Some("pays".to_owned()), ..merged.clone() };
        assert!(one.without(&merged, &edited) == card(Some("Ana"), &["vip"], Some("pays")));
        assert!(card(None, &[], None).with(&two) == card(Some("A."), &["new"], Some("tall")));
    }
}
