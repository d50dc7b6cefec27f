//! A real cluster as a platform: watches become changes, orders become API calls and policies, and everything is undone.
