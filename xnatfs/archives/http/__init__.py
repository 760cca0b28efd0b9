"""What archives over HTTP share: requests and their replies, logins, one session for all processes of a user."""
