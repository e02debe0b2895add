<?php
// Stands in for the extension Auth_remoteuser, which is no package of Debian's: who is asking, by the headers of the preset.

use MediaWiki\Session\ImmutableSessionProviderWithCookie;
use MediaWiki\Session\SessionInfo;
use MediaWiki\Session\UserInfo;

class RemoteUserSessionProvider extends ImmutableSessionProviderWithCookie {
	public function provideSessionInfo( WebRequest $request ) {
		$name = $_SERVER['HTTP_X_REMOTE_USER'] ?? '';
		if ( $name === '' ) {
			return null;
		}
		return new SessionInfo( SessionInfo::MAX_PRIORITY, [
			'provider' => $this,
			'id' => $this->getSessionIdFromCookie( $request ),
			'userInfo' => UserInfo::newFromName( $name, true ),
		] );
	}
}

$wgSessionProviders[] = [
	'class' => RemoteUserSessionProvider::class,
	'args' => [ [ 'sessionCookieName' => 'remote_user_session', 'sessionCookieOptions' => [ 'prefix' => '' ] ] ],
];
$wgGroupPermissions['*']['autocreateaccount'] = true;
$wgHooks['LocalUserCreated'][] = static function ( User $user ) {
	$user->setRealName( $_SERVER['HTTP_X_REMOTE_NAME'] ?? '' );
	$user->setEmail( $_SERVER['HTTP_X_REMOTE_EMAIL'] ?? '' );
	$user->saveSettings();
};
