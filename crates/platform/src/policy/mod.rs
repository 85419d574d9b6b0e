//! Who may do what: Cedar policies over people, roles and accounts, in files that come with the program (`roles.cedar`, checked against
//! `roles.cedarschema`). Deny by default: what no policy permits is refused. Roles contain each other; a role counts in its own account
//! and nowhere else, which the policies say and not the code.

use std::collections::{HashMap, HashSet};
use std::fmt;
use std::str::FromStr;

use cedar_policy::{
    Authorizer, Context, Decision, Entities, Entity, EntityId, EntityTypeName, EntityUid, PolicySet, Request, RestrictedExpression, Schema,
    ValidationMode, Validator,
};

use crate::error::PlatformError;
use crate::ids::{AccountId, PersonId};

const POLICIES: &str = include_str!("roles.cedar");
const SCHEMA: &str = include_str!("roles.cedarschema");

/// What somebody is in an account.
#[derive(Debug, Clone, Copy, PartialEq, Eq, PartialOrd, Ord)]
pub enum Role {
    /// Looks.
    Viewer,
    /// Pays.
    Billing,
    /// Builds.
    Developer,
    /// Administers.
    Admin,
    /// Owns.
    Owner,
}

impl Role {
    /// All of them, the most powerful first.
    pub const ALL: [Self; 5] = [Self::Owner, Self::Admin, Self::Developer, Self::Billing, Self::Viewer];

    /// As it is stored, and as policies call it.
    pub const fn name(self) -> &'static str {
        match self {
            Self::Viewer => "viewer",
            Self::Billing => "billing",
            Self::Developer => "developer",
            Self::Admin => "admin",
            Self::Owner => "owner",
        }
    }

    /// What it is for, for people.
    pub const fn purpose(self) -> &'static str {
        match self {
            Self::Viewer => "sees usage, keys and members",
            Self::Billing => "sees invoices and changes the plan",
            Self::Developer => "makes keys and uses models",
            Self::Admin => "does all but make owners",
            Self::Owner => "does everything",
        }
    }

    /// The roles that it contains.
    const fn contains(self) -> &'static [Self] {
        match self {
            Self::Viewer => &[],
            Self::Billing | Self::Developer => &[Self::Viewer],
            Self::Admin => &[Self::Developer, Self::Billing],
            Self::Owner => &[Self::Admin],
        }
    }
}

impl fmt::Display for Role {
    fn fmt(&self, formatter: &mut fmt::Formatter<'_>) -> fmt::Result {
        formatter.write_str(self.name())
    }
}

impl FromStr for Role {
    type Err = PlatformError;

    fn from_str(text: &str) -> Result<Self, PlatformError> {
        let wrong = || PlatformError::Invalid { field: "role", reason: "one of owner, admin, developer, billing, viewer".into() };
        Self::ALL.into_iter().find(|role| role.name() == text).ok_or_else(wrong)
    }
}

/// What somebody wants to do.
#[derive(Debug, Clone, Copy, PartialEq, Eq, Hash)]
pub enum Action {
    /// See an account.
    ViewAccount,
    /// See what was used and what it cost.
    ViewUsage,
    /// Talk to models.
    UseModels,
    /// See which keys there are.
    ViewKeys,
    /// Make, rotate and revoke keys.
    ManageKeys,
    /// Make, rotate and revoke keys for administration, which open what their maker's role may not.
    ManageAdminKeys,
    /// Make projects.
    ManageProjects,
    /// See who belongs to it.
    ViewMembers,
    /// Invite, remove, change roles.
    ManageMembers,
    /// Make owners, and unmake them.
    ManageOwners,
    /// See invoices.
    ViewInvoices,
    /// Change the plan, pay.
    ManageBilling,
    /// Read the audit log.
    ViewAudit,
    /// Change its name.
    ManageAccount,
    /// Run the installation.
    Operate,
}

impl Action {
    /// All of them.
    pub const ALL: [Self; 15] = [
        Self::ViewAccount,
        Self::ViewUsage,
        Self::UseModels,
        Self::ViewKeys,
        Self::ManageKeys,
        Self::ManageAdminKeys,
        Self::ManageProjects,
        Self::ViewMembers,
        Self::ManageMembers,
        Self::ManageOwners,
        Self::ViewInvoices,
        Self::ManageBilling,
        Self::ViewAudit,
        Self::ManageAccount,
        Self::Operate,
    ];

    /// As policies call it.
    pub const fn name(self) -> &'static str {
        match self {
            Self::ViewAccount => "account.view",
            Self::ViewUsage => "usage.view",
            Self::UseModels => "models.use",
            Self::ViewKeys => "keys.view",
            Self::ManageKeys => "keys.manage",
            Self::ManageAdminKeys => "admin_keys.manage",
            Self::ManageProjects => "projects.manage",
            Self::ViewMembers => "members.view",
            Self::ManageMembers => "members.manage",
            Self::ManageOwners => "owners.manage",
            Self::ViewInvoices => "invoices.view",
            Self::ManageBilling => "billing.manage",
            Self::ViewAudit => "audit.view",
            Self::ManageAccount => "account.manage",
            Self::Operate => "installation.operate",
        }
    }
}

/// Who asks, as far as policies need to know.
#[derive(Debug, Clone, Copy, PartialEq, Eq)]
pub struct Principal {
    /// Who.
    pub person: PersonId,
    /// What they are, where.
    pub membership: Option<(AccountId, Role)>,
    /// Whether they run the installation.
    pub is_operator: bool,
}

/// What it is done to.
#[derive(Debug, Clone, Copy, PartialEq, Eq)]
pub enum Target {
    /// An account, and whether it is suspended.
    Account(AccountId, crate::ledger::AccountStatus),
    /// The installation.
    Installation,
}

/// The policies, ready to decide.
pub struct Policy {
    authorizer: Authorizer,
    policies: PolicySet,
    schema: Schema,
    types: Types,
    actions: HashMap<Action, EntityUid>,
}

struct Types {
    person: EntityTypeName,
    role: EntityTypeName,
    account: EntityTypeName,
    installation: EntityTypeName,
}

fn broken(error: &dyn fmt::Display) -> PlatformError {
    PlatformError::Policy { reason: error.to_string() }
}

impl Policy {
    /// Those that come with the program, checked against their schema.
    pub fn of_roles() -> Result<Self, PlatformError> {
        let (schema, _) = Schema::from_cedarschema_str(SCHEMA).map_err(|error| broken(&error))?;
        let policies = PolicySet::from_str(POLICIES).map_err(|error| broken(&error))?;
        let checked = Validator::new(schema.clone()).validate(&policies, ValidationMode::Strict);
        if let Some(error) = checked.validation_errors().next() {
            return Err(broken(&error));
        }
        let type_of = |name: &str| EntityTypeName::from_str(name).map_err(|error| broken(&error));
        let types = Types {
            person: type_of("Person")?,
            role: type_of("Role")?,
            account: type_of("Account")?,
            installation: type_of("Installation")?,
        };
        let action = type_of("Action")?;
        let uid = |wanted: Action| (wanted, EntityUid::from_type_name_and_id(action.clone(), EntityId::new(wanted.name())));
        let actions = Action::ALL.into_iter().map(uid).collect();
        Ok(Self { authorizer: Authorizer::new(), policies, schema, types, actions })
    }

    fn uid(type_name: &EntityTypeName, id: impl AsRef<str>) -> EntityUid {
        EntityUid::from_type_name_and_id(type_name.clone(), EntityId::new(id))
    }

    fn entities(&self, principal: &Principal, target: Target) -> Result<(Entities, EntityUid, EntityUid), PlatformError> {
        let role_uid = |role: Role| Self::uid(&self.types.role, role.name());
        let mut entities = Vec::new();
        for role in Role::ALL {
            let contained = role.contains().iter().map(|&role| role_uid(role)).collect();
            entities.push(Entity::new(role_uid(role), HashMap::new(), contained).map_err(|error| broken(&error))?);
        }
        let mut attributes = HashMap::from([("operator".to_string(), RestrictedExpression::new_bool(principal.is_operator))]);
        let mut roles = HashSet::new();
        if let Some((account, role)) = principal.membership {
            let account = Self::uid(&self.types.account, account.to_string());
            attributes.insert("account".into(), RestrictedExpression::new_entity_uid(account));
            roles.insert(role_uid(role));
        }
        let person = Self::uid(&self.types.person, principal.person.to_string());
        entities.push(Entity::new(person.clone(), attributes, roles).map_err(|error| broken(&error))?);
        let resource = match target {
            Target::Installation => Self::uid(&self.types.installation, "this"),
            Target::Account(account, status) => {
                let uid = Self::uid(&self.types.account, account.to_string());
                let is_suspended = status == crate::ledger::AccountStatus::Suspended;
                let attributes = HashMap::from([("suspended".to_string(), RestrictedExpression::new_bool(is_suspended))]);
                entities.push(Entity::new(uid.clone(), attributes, HashSet::new()).map_err(|error| broken(&error))?);
                uid
            }
        };
        let entities = Entities::from_entities(entities, Some(&self.schema)).map_err(|error| broken(&error))?;
        Ok((entities, person, resource))
    }

    /// Whether the policies permit it. What cannot be decided is refused.
    pub fn permits(&self, principal: &Principal, action: Action, target: Target) -> bool {
        self.permitted(principal, &[action], target).contains(&action)
    }

    /// Those of some actions that the policies permit: what they are about is looked up once for all of them.
    pub fn permitted(&self, principal: &Principal, actions: &[Action], target: Target) -> Vec<Action> {
        let entities = match self.entities(principal, target) {
            Ok(entities) => entities,
            Err(error) => {
                tracing::error!(%error, "all is refused, since nothing can be decided");
                return Vec::new();
            }
        };
        actions.iter().copied().filter(|&action| self.decide(action, &entities)).collect()
    }

    fn decide(&self, action: Action, (entities, person, resource): &(Entities, EntityUid, EntityUid)) -> bool {
        let Some(uid) = self.actions.get(&action).cloned() else { return false };
        match Request::new(person.clone(), uid, resource.clone(), Context::empty(), Some(&self.schema)) {
            Ok(request) => self.authorizer.is_authorized(&request, &self.policies, entities).decision() == Decision::Allow,
            Err(error) => {
                // A request that does not fit the schema, such as operating an account, is one that nobody may make.
                tracing::debug!(%error, "refused, since it cannot be decided");
                false
            }
        }
    }
}

#[cfg(test)]
mod tests {
    use super::*;
    use crate::ledger::AccountStatus;

    const OWN: AccountId = AccountId::from_u128(1);
    const FOREIGN: AccountId = AccountId::from_u128(2);

    fn principal(role: Option<Role>) -> Principal {
        Principal { person: PersonId::from_u128(9), membership: role.map(|role| (OWN, role)), is_operator: false }
    }

    #[test]
    fn role_opens_what_it_is_for_and_nothing_else() {
        let policy = Policy::of_roles().expect("they are valid");
        let table = [
            (Action::ViewAccount, "OADBV"),
            (Action::ViewUsage, "OADBV"),
            (Action::UseModels, "OAD"),
            (Action::ViewKeys, "OADBV"),
            (Action::ManageKeys, "OAD"),
            (Action::ManageAdminKeys, "OA"),
            (Action::ManageProjects, "OA"),
            (Action::ViewMembers, "OADBV"),
            (Action::ManageMembers, "OA"),
            (Action::ManageOwners, "O"),
            (Action::ViewInvoices, "OAB"),
            (Action::ManageBilling, "OAB"),
            (Action::ViewAudit, "OA"),
            (Action::ManageAccount, "OA"),
            (Action::Operate, ""),
        ];
        assert_eq!(table.len(), Action::ALL.len(), "every action has its row");
        for (action, roles) in table {
            for role in Role::ALL {
                let expected = roles.contains(&role.name()[..1].to_uppercase());
                let asked = |account| policy.permits(&principal(Some(role)), action, Target::Account(account, AccountStatus::Active));
                assert_eq!(asked(OWN), expected, "{role} {}", action.name());
                assert!(!asked(FOREIGN), "{role} {} in another account", action.name());
            }
            assert!(!policy.permits(&principal(None), action, Target::Account(OWN, AccountStatus::Active)), "a stranger");
        }
    }

    #[test]
    fn installation_is_operated_by_operators_only() {
        let policy = Policy::of_roles().expect("they are valid");
        assert!(!policy.permits(&principal(Some(Role::Owner)), Action::Operate, Target::Installation));
        let operator = Principal { is_operator: true, ..principal(None) };
        assert!(policy.permits(&operator, Action::Operate, Target::Installation));
        let peeks = Action::ALL.into_iter().any(|action| policy.permits(&operator, action, Target::Account(OWN, AccountStatus::Active)));
        assert!(!peeks, "an operator is a member of nothing");
    }

    #[test]
    fn suspended_account_rests() {
        let policy = Policy::of_roles().expect("they are valid");
        let asked = |action| policy.permits(&principal(Some(Role::Owner)), action, Target::Account(OWN, AccountStatus::Suspended));
        assert!(asked(Action::ViewInvoices) && asked(Action::ManageKeys) && asked(Action::ManageBilling));
        assert!(!asked(Action::UseModels) && !asked(Action::ManageMembers));
    }
}
