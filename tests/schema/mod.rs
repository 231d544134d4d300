//! The migrations and what the code believes of their result.
