//! Who an erased contact is: everything that names the person in the tenant's rows.

use std::collections::BTreeSet;

use diesel::QueryableByName;
use diesel::sql_types::{Array, Nullable, Text, Uuid as SqlUuid};
use diesel_async::{AsyncPgConnection, RunQueryDsl};

use crate::db::{DbError, Prepare, sql};
use crate::domain::ids::{ContactId, TenantId};
use crate::domain::person;

/// A person, by every name they go by.
#[derive(Default)]
pub(super) struct Person {
    /// The contact, and those that were merged into it.
    pub contacts: Vec<ContactId>,
    /// WhatsApp ids, in every form in which one may be written.
    pub ids: Vec<String>,
    /// Contact keys.
    pub keys: Vec<String>,
    /// Phone numbers with `+`.
    pub phones: Vec<String>,
    /// A regular expression that finds any of their numbers in a text; `None` when there are none.
    pub pattern: Option<String>,
}

// Numbers belong in no log.
impl std::fmt::Debug for Person {
    fn fmt(&self, f: &mut std::fmt::Formatter<'_>) -> std::fmt::Result {
        f.debug_struct("Person").field("contacts", &self.contacts.len()).finish_non_exhaustive()
    }
}

#[derive(QueryableByName)]
struct Contact {
    #[diesel(sql_type = SqlUuid)]
    id: ContactId,
    #[diesel(sql_type = Nullable<Text>)]
    phone: Option<String>,
    #[diesel(sql_type = Nullable<Text>)]
    lid: Option<String>,
}

#[derive(QueryableByName)]
struct Named {
    #[diesel(sql_type = Text)]
    name: String,
}

impl Person {
    /// The person that `contact` is.
    pub async fn find(conn: &mut AsyncPgConnection, tenant: TenantId, contact: ContactId) -> Result<Self, DbError> {
        let contacts: Vec<Contact> = sql("WITH RECURSIVE person AS ( \
                 SELECT $2::uuid AS id \
                 UNION SELECT g.merged_id FROM contact_merges g JOIN person p ON g.kept_id = p.id \
                       WHERE g.tenant_id = $1 AND g.undone_at IS NULL) \
             SELECT c.id, c.phone, c.lid FROM contacts c JOIN person p ON p.id = c.id WHERE c.tenant_id = $1")
        .bind::<SqlUuid, _>(tenant)
        .bind::<SqlUuid, _>(contact)
        .prepared()
        .load(conn)
        .await?;
        let ids: Vec<ContactId> = contacts.iter().map(|contact| contact.id).collect();
        let named: Vec<Named> = sql("SELECT key AS name FROM contact_ids WHERE tenant_id = $1 AND contact_id = ANY($2) \
             UNION SELECT wa_id FROM contact_ids WHERE tenant_id = $1 AND contact_id = ANY($2) \
             UNION SELECT unnest(keys) FROM contact_merges WHERE tenant_id = $1 AND kept_id = ANY($2) AND undone_at IS NULL")
        .bind::<SqlUuid, _>(tenant)
        .bind::<Array<SqlUuid>, _>(&ids)
        .prepared()
        .load(conn)
        .await?;
        let mut names: Vec<String> = named.into_iter().map(|row| row.name).collect();
        for contact in contacts {
            names.extend(contact.lid);
            names.extend(contact.phone.map(|phone| format!("{}@c.us", phone.trim_start_matches('+'))));
        }
        Ok(Self { contacts: ids, ..Self::named(&names) })
    }

    fn named(names: &[String]) -> Self {
        let (mut ids, mut keys) = (BTreeSet::new(), BTreeSet::new());
        let (mut phones, mut numbers) = (BTreeSet::new(), BTreeSet::new());
        for name in names {
            ids.insert(name.clone());
            keys.extend(person::key(name));
            let Some((local, domain)) = name.split_once('@') else { continue };
            let digits = local.split_once(':').map_or(local, |(digits, _device)| digits);
            if digits.is_empty() || !digits.bytes().all(|byte| byte.is_ascii_digit()) {
                continue;
            }
            if domain == "lid" {
                ids.insert(format!("{digits}@lid"));
                numbers.insert(digits.to_owned());
                continue;
            }
            for digits in brazilian_forms(digits) {
                ids.insert(format!("{digits}@c.us"));
                ids.insert(format!("{digits}@s.whatsapp.net"));
                phones.insert(format!("+{digits}"));
                numbers.insert(digits);
            }
        }
        let any = numbers.into_iter().collect::<Vec<_>>().join("|");
        Self {
            contacts: Vec::new(),
            ids: ids.into_iter().collect(),
            keys: keys.into_iter().collect(),
            phones: phones.into_iter().collect(),
            // Not within a longer number, which is somebody else's.
            pattern: (!any.is_empty()).then(|| format!("(?<![0-9])({any})(?![0-9])")),
        }
    }
}

/// A number as it is, and a Brazilian mobile number with and without its ninth digit.
fn brazilian_forms(digits: &str) -> Vec<String> {
    let mut forms = vec![digits.to_owned()];
    let Some(national) = digits.strip_prefix("55") else { return forms };
    let Some((area, number)) = national.split_at_checked(2) else { return forms };
    let is_mobile = |number: &str| matches!(number.as_bytes().first(), Some(b'6'..=b'9'));
    if number.len() == 8 && is_mobile(number) {
        forms.push(format!("55{area}9{number}"));
    }
    if let Some(short) = number.strip_prefix('9').filter(|short| short.len() == 8 && is_mobile(short)) {
        forms.push(format!("55{area}{short}"));
    }
    forms
}

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn a_person_is_found_under_every_form_of_their_ids() {
        let person = Person::named(&["551187654321@c.us".to_owned(), "77000123@lid".to_owned()]);
        assert_eq!(
            person.ids,
            [
                "551187654321@c.us",
                "551187654321@s.whatsapp.net",
                "5511987654321@c.us",
                "5511987654321@s.whatsapp.net",
                "77000123@lid"
            ]
        );
        assert_eq!(person.phones, ["+551187654321", "+5511987654321"]);
        assert_eq!(person.keys, ["551187654321@c.us", "77000123@lid"]);
        assert_eq!(person.pattern.as_deref(), Some("(?<![0-9])(551187654321|5511987654321|77000123)(?![0-9])"));
        assert_eq!(Person::named(&[]).pattern, None);
    }
}
