//! Conditions in [CEL](https://cel.dev): routes of subscriptions and of forwardings are chosen by them.

#[cfg(feature = "api")]
pub use with_cel::{Expression, Scope};
#[cfg(not(feature = "api"))]
pub use without_cel::{Expression, Scope};

/// What an expression gives for some values of its variables.
#[derive(Debug, Clone, PartialEq, Eq)]
pub enum Outcome {
    /// A truth value.
    Truth(bool),
    /// A value of another type: CEL's name of it.
    Other(String),
    /// It asks for a function that is not there, or not for values of these types; why.
    Mistyped(String),
    /// It cannot be decided otherwise: over a field that is not there, for example; why.
    Undecided(String),
}

/// Longest expression, in bytes.
pub const MAX_BYTES: usize = 8 << 10;

#[cfg(feature = "api")]
mod with_cel {
    use cel::parser::PrattParser;
    use cel::{Context, ExecutionError, IdedExpr, Value};
    use serde::Serialize;

    use super::{MAX_BYTES, Outcome};

    /// A parsed expression.
    #[derive(Debug, Clone)]
    pub struct Expression {
        parsed: IdedExpr,
        variables: Vec<String>,
    }

    /// Values of variables. Making one costs some microseconds: one serves all expressions over a message.
    #[derive(Default)]
    pub struct Scope(Context<'static, 'static>);

    impl std::fmt::Debug for Scope {
        fn fmt(&self, f: &mut std::fmt::Formatter<'_>) -> std::fmt::Result {
            f.debug_struct("Scope").finish_non_exhaustive()
        }
    }

    impl Scope {
        /// Sets a variable.
        ///
        /// # Errors
        /// When the value has no form in CEL.
        pub fn set(&mut self, name: &str, value: impl Serialize) -> Result<(), String> {
            self.0.add_variable_from_value(name, cel::to_value(value).map_err(|e| e.to_string())?);
            Ok(())
        }
    }

    impl Expression {
        /// Parses an expression.
        ///
        /// # Errors
        /// What is wrong with it, on one line.
        pub fn parse(text: &str) -> Result<Self, String> {
            if text.len() > MAX_BYTES {
                return Err(format!("an expression of {} bytes; accepted are {MAX_BYTES}", text.len()));
            }
            // The parser is a stranger's: a panic in it must not end more than this expression.
            let parsed = match std::panic::catch_unwind(|| PrattParser::new().parse(text)) {
                Ok(Ok(parsed)) => parsed,
                Ok(Err(errors)) => return Err(errors.to_string().lines().next().unwrap_or("no CEL expression").to_owned()),
                Err(_) => return Err("it cannot be parsed".to_owned()),
            };
            let variables = parsed.references().variables().into_iter().map(str::to_owned).collect();
            Ok(Self { parsed, variables })
        }

        /// The names in it that are no functions: variables, and what its macros (`exists`, `all`, ...) call their elements.
        pub fn names(&self) -> impl Iterator<Item = &str> {
            self.variables.iter().map(String::as_str)
        }

        /// Whether it holds.
        ///
        /// # Errors
        /// When that cannot be decided: over a variable or a field that is not there, or without a truth value.
        pub fn holds(&self, scope: &Scope) -> Result<bool, String> {
            match self.outcome(scope) {
                Outcome::Truth(holds) => Ok(holds),
                Outcome::Other(kind) => Err(format!("it gives a value of type {kind}, no truth value")),
                Outcome::Mistyped(error) | Outcome::Undecided(error) => Err(error),
            }
        }

        /// What it gives.
        #[must_use]
        pub fn outcome(&self, scope: &Scope) -> Outcome {
            use ExecutionError as E;
            match Value::resolve(&self.parsed, &scope.0) {
                Ok(Value::Bool(holds)) => Outcome::Truth(holds),
                Ok(other) => Outcome::Other(other.type_of().to_string()),
                Err(
                    error @ (E::UndeclaredReference(_)
                    | E::NoSuchOverload(_)
                    | E::InvalidArgumentCount { .. }
                    | E::MissingArgumentOrTarget
                    | E::NotSupportedAsMethod { .. }
                    | E::UnsupportedTargetType { .. }
                    | E::UnexpectedType { .. }
                    | E::UnsupportedBinaryOperator(..)
                    | E::ValuesNotComparable(..)),
                ) => Outcome::Mistyped(error.to_string()),
                Err(error) => Outcome::Undecided(error.to_string()),
            }
        }
    }
}

/// A build without the interpreter: components that are built alone need none, and nothing can be parsed.
#[cfg(not(feature = "api"))]
mod without_cel {
    use serde::Serialize;

    use super::Outcome;

    /// Cannot be made.
    #[derive(Debug, Clone)]
    pub enum Expression {}

    /// No variables.
    #[derive(Debug, Default)]
    pub struct Scope(());

    impl Scope {
        /// Nothing can ask for it.
        ///
        /// # Errors
        /// None.
        pub fn set(&mut self, _: &str, _: impl Serialize) -> Result<(), String> {
            Ok(())
        }
    }

    impl Expression {
        /// Refuses.
        ///
        /// # Errors
        /// Always.
        pub fn parse(_: &str) -> Result<Self, String> {
            Err("this build has no interpreter for expressions".to_owned())
        }

        /// None.
        pub fn names(&self) -> impl Iterator<Item = &str> {
            std::iter::empty()
        }

        /// Never called.
        ///
        /// # Errors
        /// None.
        pub fn holds(&self, _: &Scope) -> Result<bool, String> {
            match *self {}
        }

        /// Never called.
        #[must_use]
        pub fn outcome(&self, _: &Scope) -> Outcome {
            match *self {}
        }
    }
}
