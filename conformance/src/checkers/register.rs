//! A register with versions, as a [`Model`] to search with.

use serde::{Deserialize, Serialize};

use super::jsonl::Line;
use super::operation::Operation;
use super::search::Model;

/// What a compare-and-set compares.
#[derive(Clone, Debug, PartialEq, Eq, Serialize, Deserialize)]
pub enum Expect {
    /// The version of the last write; 0 if there was none.
    Version(u64),
    /// The value; `None` if there is none.
    Value(Option<u64>),
}

/// What can be asked of a register.
#[derive(Clone, Debug, PartialEq, Eq, Serialize, Deserialize)]
pub enum RegisterCall {
    /// Its value.
    Read {
        /// Of which register.
        key: u64,
    },
    /// To hold another value.
    Write {
        /// Which register.
        key: u64,
        /// The value.
        value: u64,
    },
    /// To hold another value if it is as expected.
    CompareAndSet {
        /// Which register.
        key: u64,
        /// What it must be.
        expect: Expect,
        /// The value.
        value: u64,
    },
}

/// What a register answers.
///
/// Versions may be left out where a store does not tell them. Where it does, each write has a
/// greater one than the write before.
#[derive(Clone, Debug, PartialEq, Eq, Serialize, Deserialize)]
pub enum RegisterAnswer {
    /// To a read.
    Value {
        /// The value; `None` if it was never written.
        value: Option<u64>,
        /// The version of the write; 0 if there was none.
        version: Option<u64>,
    },
    /// To a write, and to a compare-and-set that found what it expected.
    Written {
        /// The version of this write.
        version: Option<u64>,
    },
    /// To a compare-and-set that found something else.
    Refused,
}

/// The history of some registers.
pub type RegisterOperation = Operation<RegisterCall, RegisterAnswer>;

impl Line for RegisterOperation {
    const KIND: &'static str = "register";
}

/// Registers with versions, each on its own.
#[derive(Clone, Copy, Debug)]
pub struct Register;

/// The version of the last write.
#[derive(Clone, Copy, Debug, PartialEq, Eq, Hash)]
enum Version {
    Exactly(u64),
    /// The last write's answer did not tell it, or was lost.
    Above(u64),
}

impl Version {
    fn may_be(self, version: u64) -> bool {
        match self {
            Self::Exactly(exactly) => exactly == version,
            Self::Above(above) => version > above,
        }
    }

    /// After a further write, which may have told its version.
    fn next(self, told: Option<u64>) -> Option<Self> {
        let floor = match self {
            Self::Exactly(exactly) => exactly,
            // At least one lies in between.
            Self::Above(above) => above + 1,
        };
        match told {
            Some(version) => (version > floor).then_some(Self::Exactly(version)),
            None => Some(Self::Above(floor)),
        }
    }

    /// After a look at it.
    fn seen(self, told: Option<u64>) -> Option<Self> {
        match told {
            Some(version) => self.may_be(version).then_some(Self::Exactly(version)),
            None => Some(self),
        }
    }
}

/// What a register holds.
#[derive(Clone, Debug, PartialEq, Eq, Hash)]
pub struct RegisterState {
    value: Option<u64>,
    version: Version,
}

impl RegisterState {
    fn written(&self, value: u64, answer: Option<&RegisterAnswer>) -> Option<Self> {
        let told = match answer {
            None => None,
            Some(RegisterAnswer::Written { version }) => *version,
            Some(_) => return None,
        };
        let version = self.version.next(told)?;
        let value = Some(value);
        Some(Self { value, version })
    }

    fn read(&self, answer: Option<&RegisterAnswer>) -> Option<Self> {
        match answer {
            None => Some(self.clone()),
            Some(RegisterAnswer::Value { value, version }) if *value == self.value => Some(Self {
                value: self.value,
                version: self.version.seen(*version)?,
            }),
            Some(_) => None,
        }
    }

    fn compared(
        &self,
        expect: &Expect,
        value: u64,
        answer: Option<&RegisterAnswer>,
    ) -> Option<Self> {
        let found = match expect {
            Expect::Value(value) => *value == self.value,
            Expect::Version(version) => self.version.may_be(*version),
        };
        // A version that was never told may always be another.
        let certain = match expect {
            Expect::Value(_) => true,
            Expect::Version(_) => matches!(self.version, Version::Exactly(_)),
        };
        match answer {
            Some(RegisterAnswer::Refused) => (!found || !certain).then(|| self.clone()),
            _ if !found => None,
            _ => match expect {
                Expect::Version(version) => Self {
                    value: self.value,
                    version: Version::Exactly(*version),
                }
                .written(value, answer),
                Expect::Value(_) => self.written(value, answer),
            },
        }
    }
}

impl Model for Register {
    type Key = u64;
    type Input = RegisterCall;
    type Output = RegisterAnswer;
    type State = RegisterState;

    fn key(input: &RegisterCall) -> u64 {
        match input {
            RegisterCall::Read { key }
            | RegisterCall::Write { key, .. }
            | RegisterCall::CompareAndSet { key, .. } => *key,
        }
    }

    fn initial() -> RegisterState {
        RegisterState {
            value: None,
            version: Version::Exactly(0),
        }
    }

    fn step(
        state: &RegisterState,
        input: &RegisterCall,
        output: Option<&RegisterAnswer>,
    ) -> Option<RegisterState> {
        match input {
            RegisterCall::Read { .. } => state.read(output),
            RegisterCall::Write { value, .. } => state.written(*value, output),
            RegisterCall::CompareAndSet { expect, value, .. } => {
                state.compared(expect, *value, output)
            }
        }
    }

    fn only_looks(_: &RegisterCall, output: &RegisterAnswer) -> bool {
        !matches!(output, RegisterAnswer::Written { .. })
    }
}
#[cfg(test)]
mod tests;
