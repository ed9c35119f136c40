# Net::SMTP of Perl's own library.
use strict;
use warnings;
use Net::SMTP;
my %e = %ENV;
my $smtp = Net::SMTP->new($e{HOST}, Port => $e{PORT}, Hello => 'perl.test', Timeout => 120) or die "connect: $@";
if ($e{FEATURE} eq 'TLS' or $e{FEATURE} eq 'AUTH') {
    $smtp->starttls(SSL_ca_file => $e{CA}, SSL_verifycn_name => 'localhost') or die "starttls: " . $smtp->message;
}
if ($e{FEATURE} eq 'AUTH') {
    $smtp->auth($e{AUTH_USER}, $e{AUTH_PASSWORD}) or die "auth: " . $smtp->message;
}
$smtp->mail($e{SENDER}, Bits => '8') or die "mail: " . $smtp->message;
my @notify = $e{FEATURE} eq 'DSN' ? ({ Notify => ['SUCCESS'] }) : ();
$smtp->recipient($e{RECIPIENT}, @notify) or die "recipient: " . $smtp->message;
open my $file, '<:raw', $e{MESSAGE} or die $!;
$smtp->data() or die "data: " . $smtp->message;
while (my $line = <$file>) { $smtp->datasend($line) or die "datasend"; }
$smtp->dataend() or die "dataend: " . $smtp->message;
$smtp->quit;
