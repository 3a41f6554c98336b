//! What is to go wrong, as text: `[role/]name@n=code`, `name~n=code`, `*@n=code`.

use std::fmt;
use std::str::FromStr;

use crate::calls;

/// Who makes a call: the first argument of the process, or what `FAKE_CUDA_ROLE` says.
#[derive(Debug, Clone, Copy, PartialEq, Eq, Hash, PartialOrd, Ord)]
pub enum Role {
    /// Whoever it is: the sum over all processes.
    All,
    /// `longshore holder`
    Holder,
    /// `longshore copier`
    Copier,
    /// `longshore loader`
    Loader,
    /// `longshore load`, and what else says so: inference processes.
    Client,
    /// Everybody else.
    Other,
}

impl Role {
    /// All of them, in the order in which their counters lie.
    pub const ALL: [Role; 6] = [Role::All, Role::Holder, Role::Copier, Role::Loader, Role::Client, Role::Other];

    /// Its name in a fault.
    pub fn name(self) -> &'static str {
        match self {
            Role::All => "all",
            Role::Holder => "holder",
            Role::Copier => "copier",
            Role::Loader => "loader",
            Role::Client => "client",
            Role::Other => "other",
        }
    }

    /// The role of this process.
    pub(crate) fn of_this_process() -> Role {
        let said = std::env::var("FAKE_CUDA_ROLE").ok();
        let name = said.or_else(|| std::env::args().nth(1)).unwrap_or_default();
        match name.as_str() {
            "load" => Role::Client,
            name => name.parse().ok().filter(|&role| role != Role::All).unwrap_or(Role::Other),
        }
    }
}

impl FromStr for Role {
    type Err = String;

    fn from_str(name: &str) -> Result<Role, String> {
        Role::ALL.into_iter().find(|role| role.name() == name).ok_or_else(|| format!("no role is called `{name}`"))
    }
}

/// One call that is to fail, once.
#[derive(Debug, Clone, Copy, PartialEq, Eq)]
pub struct Fault {
    /// Whose calls are counted.
    pub role: Role,
    /// Which entry point's calls are counted; `None`: all of them.
    pub call: Option<usize>,
    /// Which of these calls, from 1.
    pub nth: u64,
    /// What it answers.
    pub code: u32,
    /// The call is accepted; what it set off fails, and the context is of no use from then on.
    pub sticky: bool,
}

impl Fault {
    /// Faults separated by commas.
    ///
    /// # Errors
    /// A text that says which of them is none, and why.
    pub fn parse_list(list: &str) -> Result<Vec<Fault>, String> {
        list.split(',').filter(|fault| !fault.is_empty()).map(str::parse).collect()
    }
}

impl FromStr for Fault {
    type Err = String;

    fn from_str(text: &str) -> Result<Fault, String> {
        let wrong = |why: &str| format!("`{text}` is no fault: {why} (`[role/]name@n=code` or `[role/]name~n=code`)");
        let (role, rest) = match text.split_once('/') {
            Some((role, rest)) => (role.parse().map_err(|why: String| wrong(&why))?, rest),
            None => (Role::All, text),
        };
        let sticky = rest.contains('~');
        let (name, rest) = rest.split_once(['@', '~']).ok_or_else(|| wrong("there is no `@` or `~`"))?;
        let call = match name {
            "*" => None,
            name => Some(calls::find(name).ok_or_else(|| wrong("there is no such entry point"))?),
        };
        let (nth, code) = rest.split_once('=').ok_or_else(|| wrong("there is no `=`"))?;
        let nth: u64 = nth.parse().map_err(|_| wrong("which call is no number"))?;
        let code: u32 = code.parse().map_err(|_| wrong("the code is no number"))?;
        if nth == 0 || code == 0 {
            return Err(wrong("calls count from 1, and 0 is success"));
        }
        Ok(Fault { role, call, nth, code, sticky })
    }
}

impl fmt::Display for Fault {
    fn fmt(&self, f: &mut fmt::Formatter<'_>) -> fmt::Result {
        if self.role != Role::All {
            write!(f, "{}/", self.role.name())?;
        }
        let name = self.call.map_or("*", |call| calls::NAMES[call]);
        write!(f, "{name}{}{}={}", if self.sticky { '~' } else { '@' }, self.nth, self.code)
    }
}

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn faults_are_read_as_they_are_written() {
        for text in ["cuMemCreate@3=2", "copier/cuMemcpyHtoDAsync_v2~5=214", "holder/*@1=9999", "*~7=700"] {
            let fault: Fault = text.parse().unwrap();
            assert_eq!(fault.to_string(), text);
        }
        assert_eq!(Fault::parse_list("cuInit@1=100,,*@2=3").unwrap().len(), 2);
        assert_eq!(Fault::parse_list("").unwrap(), []);
    }

    #[test]
    fn what_is_no_fault_is_refused() {
        for text in ["cuInit", "cuInit@1", "cuInit@0=1", "cuInit@1=0", "cuNone@1=1", "nobody/cuInit@1=1", "cuInit@x=1"]
        {
            assert!(text.parse::<Fault>().is_err(), "{text}");
        }
    }
}
