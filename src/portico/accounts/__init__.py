"""Accounts: users, roles, sign-ins, tokens and the audit log. Knows no HTTP and no sessions."""

from portico.accounts.accounts import ROOT, Accounts
from portico.accounts.permissions import Permission, may, require
from portico.accounts.posix import PosixAccounts
from portico.accounts.ssh_certificates import SshCertificates
from portico.accounts.ssh_keys import SshKeys

__all__ = ["ROOT", "Accounts", "Permission", "PosixAccounts", "SshCertificates", "SshKeys", "may", "require"]
