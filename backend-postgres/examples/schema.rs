//! Prints the schema as SQL, for a role that may create it, and the rights for the roles that are named:
//! `cargo run -p tenure-postgres --example schema -- app > tenure.sql`.

fn main() {
    print!("{}", tenure_postgres::migration());
    for role in std::env::args().skip(1) {
        print!("\n{}", tenure_postgres::grants(&role));
    }
}
